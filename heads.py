"""The three tasks as values, their heads on top of BERT, and how they are scored.

    3.1    Task, tasks(): columns, loss, prediction, metric and divergence of each task
    3.1    cross_entropy(), binary_cross_entropy(), squared_error(): their losses
    3.1    MultitaskBert: the shared encoder with a linear head for each task
    3.4    pairs encoded together (CON) or apart
    3.6    hidden layers in the heads (HLH)
    ours   CosineHead: a cosine in the heads of pairs encoded apart
    4.2    accuracy(), pearson(), overall_score(), evaluate(), outputs()

Symbols: B examples in a batch, R rows of T tokens that they take (R = 2B for pairs encoded
apart), H features of the encoder, C outputs of a task, N examples in a file.

D1: Section 3.1 swaps the losses of SST, which has five classes, and STS, a graded score
whose labels are mostly not whole. Here SST has cross-entropy on 5 logits and STS squared
error on one. tasks(sst_loss="mse", sts_loss="ce") is the printed version; its STS has 6
classes, 0 to 5.
D9: 3.6 gives the pair heads two hidden layers with sizes, which we follow; 4.4 says one.
"""

import contextlib
import dataclasses
import os
import warnings
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import bert
import data
import optim
import smart
from plumbing import checkpoint, declared, loop, progress, ranks, reading

# --- 3.1 A task is a value ---

@dataclasses.dataclass(frozen=True)
class Task:
    """All that distinguishes one task. To add one, add it to tasks(), and its CSV files."""
    name: str
    file: str                   # its files are FILE-train.csv, FILE-dev.csv, …
    texts: tuple                # the columns with one or two sentences
    label: str                  # the column with the label
    lowest: float               # labels go from here …
    highest: float              # … to here
    whole_labels: bool          # only whole numbers?
    prediction_column: str      # title in a prediction file
    num_outputs: int            # C
    loss: Callable              # tensors (logits, labels [B]) -> scalar tensor
    predict: Callable           # logits -> tensor [B]
    probabilities: Callable | None      # logits -> [B, C], or [B] where C = 1
    metric: Callable            # (predictions [N], labels [N]) -> float
    divergence: Callable | None         # (logits, logits) -> ℓ_s: SMART and R-Drop
    classes: tuple = ()         # what the labels 0, 1, … mean, if they are classes
    ordered: bool = False       # are the classes steps of a scale?

    @property
    def pair(self) -> bool:
        return len(self.texts) == 2

    @property
    def kind(self) -> str:
        """By its labels: "graded", "binary" (0 and 1) or "classes" (0, 1, 2, …)."""
        if not self.whole_labels:
            return "graded"
        return "binary" if self.highest - self.lowest == 1 else "classes"

    def hidden_sizes(self, H: int) -> list:
        """Widths of the head's hidden layers.   [report 3.6]"""
        return [H, H // 4] if self.pair else [H]


def cross_entropy(logits, labels):
    """The SST loss: -log softmax(logits)[label], mean over the batch.   [report 3.1, D1]

    logits [B, C]; labels [B], floats as they come from the file -> scalar. Five equal
    logits cost ln 5 = 1.609. A label that is not whole counts as the nearest class; halves
    go to even.
    """
    return F.cross_entropy(logits, labels.round().long())


def binary_cross_entropy(logits, labels):
    """The paraphrase loss: -y log σ(z) - (1 - y) log(1 - σ(z)), batch mean.   [report 3.1]

    logits z [B]; labels y [B], 0 or 1 -> scalar. A logit of 0 costs ln 2 = 0.693; one of
    -200 for a paraphrase costs 200, where the logarithm of σ(z) itself would be infinite.
    """
    return F.binary_cross_entropy_with_logits(logits, labels)


def squared_error(logits, labels):
    """The STS loss: (ŷ - y)², mean over the batch.   [report 3.1, D1]   [B], [B] -> scalar
    """
    return F.mse_loss(logits, labels)


def argmax(logits):
    return logits.argmax(-1)


def argmax_as_float(logits):
    """A class as a float, as STS predictions are."""
    return logits.argmax(-1).float()


def softmax(logits):
    return logits.softmax(-1)


def above_zero(logits):
    """σ(z) > ½, as 0.0 or 1.0."""
    return (logits > 0).float()


def nearest_sst_class(logits):
    """Of predicted numbers; 0 for NaN, which has no integer."""
    return logits.nan_to_num().round().clamp(0, 4).long()


def identity(logits):
    return logits


def tasks(sst_loss="ce", sts_loss="mse") -> tuple:
    """The report's three tasks, in the order SST, paraphrase, STS.   [report 3.1, D1]

    sst_loss, sts_loss: "ce" or "mse". sst_loss "mse" predicts sentiment as a number,
    rounded to a class; sts_loss "ce" takes the similarity, rounded, as one of the six
    classes 0 to 5. Raises ValueError for another loss.
    """
    for name, value in (("sst_loss", sst_loss), ("sts_loss", sts_loss)):
        if value not in ("ce", "mse"):
            raise ValueError(f"{name} must be 'ce' or 'mse', got {value!r}")
    sst = Task(
        name="sst", file="ids-sst", texts=("sentence",), label="sentiment",
        lowest=0, highest=4, whole_labels=True, prediction_column="Predicted_Sentiment",
        num_outputs=5, loss=cross_entropy, predict=argmax, probabilities=softmax,
        metric=accuracy, divergence=smart.symmetric_kl,
        classes=("negative", "somewhat negative", "neutral", "somewhat positive",
                 "positive"), ordered=True)
    para = Task(
        name="para", file="quora", texts=("sentence1", "sentence2"), label="is_duplicate",
        lowest=0, highest=1, whole_labels=True, prediction_column="Predicted_Is_Paraphrase",
        num_outputs=1, loss=binary_cross_entropy, predict=above_zero,
        probabilities=torch.sigmoid, metric=accuracy, divergence=smart.binary_symmetric_kl,
        classes=("no paraphrase", "paraphrase"))
    sts = Task(
        name="sts", file="sts", texts=("sentence1", "sentence2"), label="similarity",
        lowest=0, highest=5, whole_labels=False,
        prediction_column="Predicted_Similiary",        # spelled as the course does
        num_outputs=1, loss=squared_error, predict=identity, probabilities=None,
        metric=pearson, divergence=smart.squared_difference)
    if sst_loss == "mse":
        sst = dataclasses.replace(
            sst, num_outputs=1, loss=squared_error, predict=nearest_sst_class,
            probabilities=None, divergence=smart.squared_difference)
    if sts_loss == "ce":
        sts = dataclasses.replace(
            sts, num_outputs=6, loss=cross_entropy, predict=argmax_as_float,
            probabilities=softmax, divergence=smart.symmetric_kl)
    return sst, para, sts


# --- 3.1, 3.4, 3.6 The model ---

class Head(nn.Module):
    """Dropout and a linear layer, after hidden layers if there are any.   [report 3.1, 3.6]

        h ← ReLU(Linear(Dropout(h)))     for each hidden layer                  [3.6: HLH]
        ŷ = Linear(Dropout(h))           h [B, in] -> logits [B, C], or [B] where C = 1

    h is BERT's output, or [u; v], those of a pair that is encoded apart. sizes: [in, those
    of the hidden layers, C]; dropout: a probability.
    """

    def __init__(self, sizes, dropout):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:]))
        self.dropout = nn.Dropout(dropout)
        # Why not BERT's own N(0, .02²): at H = 384 every such layer shrinks its input to a
        # third, and behind three of them the encoder hardly gets a gradient. N(0, 2 / in)
        # keeps the size through a ReLU [He et al. 2015]. Measured with MiniLM, gvac, CON
        # and HLH, once: after an epoch the overall dev score is .707 with it, .629 without.
        for layer in self.layers[:-1]:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    def forward(self, h):
        *hidden, last = self.layers
        # In float32 even under autocast: a bfloat16 logit near 3 is a multiple of 1/64, and
        # so would be a predicted similarity, and what SMART takes for a change.
        with torch.autocast(h.device.type, enabled=False):
            h = h.float()
            for layer in hidden:
                h = F.relu(layer(self.dropout(h)))
            logits = last(self.dropout(h))                          # [B, C]
        # Trap: [B, 1] against labels [B] would broadcast to [B, B].
        return logits.squeeze(-1) if last.out_features == 1 else logits


class CosineHead(Head):
    """A head that can compare the two vectors of a pair.   [ours: --cosine]

        ŷ = Linear(Dropout([u; v])) + s (cos(u, v) - m)      [u; v] [B, 2H] -> ŷ [B]

    s, m: as the cosine goes from 0 to 1, the last term goes from the lowest label to the
    highest, or, if binary, from a logit of -5 to 5. Why: a linear head adds what it
    finds in u to what it finds in v, so it cannot tell whether they are alike.
    """

    def __init__(self, sizes, dropout, task):
        super().__init__(sizes, dropout)
        low, high = (-5, 5) if task.kind == "binary" else (task.lowest, task.highest)
        self.scale, self.middle = high - low, -low / (high - low)

    def forward(self, uv):
        c = F.cosine_similarity(*uv.float().chunk(2, -1))                       # [B]
        return super().forward(uv) + self.scale * (c - self.middle)


class MultitaskBert(nn.Module):
    """One encoder and a head for each task.   [report 3.1]

    tokenizer: a data.WordPiece, which only predict() needs; names: the tasks that get a
    head, by default all of tasks(); trained: those of them that are trained, by default all
    (another head stays random, and predict() says so).

    con: encode a pair as one sequence [3.4]; hlh: hidden layers in the heads [3.6]; pool:
    "cls", BERT's pooler output, or "mean", the mean of the last hidden states over real
    tokens; sst_loss, sts_loss as for tasks(). max_length: a longer row of tokens is cut,
    [CLS] and [SEP] counted; by default what the encoder has positions for. cosine: pairs
    are encoded apart, and their heads (of one output) are CosineHeads. Raises ValueError
    for what does not fit together (declared.check_settings), and an unknown name.
    Every task has its head from the start, trained or not, so that a single-task model can
    be evaluated on all three, as in the report's Table 2.
    """

    def __init__(self, encoder, con=False, hlh=False, pool="cls", sst_loss="ce",
                 sts_loss="mse", tokenizer=None, names=None, trained=None,
                 max_length=None, cosine=False):
        super().__init__()
        declared.check_settings(encoder, con, cosine, pool, max_length)
        self.max_length = max_length or encoder.config.max_position_embeddings
        self.bert, self.con, self.pool, self.tokenizer = encoder, con, pool, tokenizer
        known = {task.name: task for task in declared.valid(tasks(sst_loss, sts_loss))}
        self.tasks = {name: known[name] for name in declared.chosen(known, names)}
        self.trained = declared.chosen(self.tasks, trained)
        self.settings = {"con": con, "hlh": hlh, "pool": pool, "sst_loss": sst_loss,
                         "sts_loss": sts_loss, "trained": self.trained,
                         "max_length": self.max_length, "cosine": cosine}
        H, config = encoder.config.hidden_size, encoder.config
        self.heads = nn.ModuleDict()
        for task in self.tasks.values():
            width = 2 * H if task.pair and not con else H
            sizes = [width, *(task.hidden_sizes(H) if hlh else []), task.num_outputs]
            if cosine and task.pair and task.num_outputs == 1:
                self.heads[task.name] = CosineHead(sizes, config.hidden_dropout_prob, task)
            else:
                self.heads[task.name] = Head(sizes, config.hidden_dropout_prob)

    def embed(self, batch):
        """data.Batch -> x [R, T, H], what SMART perturbs; R is B, or 2B for pairs apart."""
        return self.bert.embed(batch.input_ids, batch.token_type_ids)

    def logits(self, task, x, batch):
        """x [R, T, H] -> logits [B, C], or [B] where C = 1.

        Without CON the R = 2B rows are encoded in one pass, and the two vectors of a pair
        are then put side by side. (Dropout on [u; v] is dropout on u and on v.)
        """
        hidden_states, pooled = self.bert.encode(x, batch.attention_mask)
        if self.pool == "mean":
            if batch.attention_mask is None:
                pooled = hidden_states.mean(1)
            else:       # padding must count neither in the sum nor in the number of tokens
                mask = batch.attention_mask[:, :, None].to(hidden_states.dtype)
                pooled = (hidden_states * mask).sum(1) / mask.sum(1)
        if task.pair and not self.con:
            pooled = torch.cat(pooled.chunk(2), -1)                 # [2B, H] -> [B, 2H]
        return self.heads[task.name](pooled)

    def forward(self, task, batch):
        """(Task, data.Batch) -> logits [B, C], or [B] where C = 1"""
        return self.logits(task, self.embed(batch), batch)

    def predict(self, name, texts, with_probabilities=False):
        """Predictions for texts of your own.   [N] strings, or pairs of them -> numpy [N]

        name: of the task, such as "sst". with_probabilities: -> (predictions, probabilities
        [N, C], or [N] where C = 1; None for a task without classes). Runs in batches, and
        shows how far it is where that takes long. Raises ValueError for an unknown task,
        and for a pair where the task has one text or the reverse. Warns of a random head.
        """
        declared.chosen(self.tasks, [name])
        if name not in self.trained:
            warnings.warn(f"{name} was not trained: its head is random, and so are its "
                          f"answers")
        if self.tokenizer is None:
            raise ValueError("needed a tokenizer to read texts, as in "
                             "MultitaskBert(…, tokenizer=data.WordPiece(folder))")
        task = self.tasks[name]
        examples = [tuple(map(self.tokenizer, reading.texts_of(
            example, len(task.texts), f"texts[{number}]: {name}")))
            for number, example in enumerate(reading.listed(texts))]
        if not examples:
            return (np.zeros(0), None) if with_probabilities else np.zeros(0)
        dataset = data.Dataset("", [""] * len(examples), examples, None)
        predictions, probabilities = outputs(self, task, dataset, self.tokenizer,
                                             device=next(self.parameters()).device)
        return (predictions, probabilities) if with_probabilities else predictions

    def save_pretrained(self, folder):
        """Write the encoder as any BERT library reads it, heads and settings beside it."""
        self.bert.save_pretrained(folder, {f"heads.{name}": p for name, p
                                           in self.heads.state_dict().items()},
                                  multitask=self.settings)
        if self.tokenizer is not None:
            self.tokenizer.save(folder, self.max_length)

    @classmethod
    def from_pretrained(cls, folder, device="cpu"):
        """Read a run's best/ folder, on a device, in eval mode, with its tokenizer.

        It has the tasks that were saved. Raises FileNotFoundError, or ValueError if it
        holds no heads, or one that tasks() does not know, or one of another shape.
        """
        settings = checkpoint.head_settings(folder)
        encoder = bert.BertModel.from_pretrained(folder, pooler=settings["pool"] == "cls")
        names = checkpoint.head_names(folder, [task.name for task in tasks()], settings)
        has_words = {"vocab.txt", "tokenizer.json"} & set(os.listdir(folder))
        tokenizer = (data.WordPiece(folder, encoder.config.vocab_size) if has_words
                     else None)
        try:
            model = cls(encoder, **settings, names=names, tokenizer=tokenizer)
        except ValueError as error:
            raise ValueError(f"{os.path.join(folder, 'config.json')}: {error}") from None
        checkpoint.fill_heads(folder, {f"heads.{name}": p for name, p
                                       in model.heads.state_dict().items()})
        return model.to(device).eval()

    def blocks(self) -> list[optim.Block]:
        """The parameters, for optim.FlatParameters: what is shared, and what is a head's.

        embeddings, layer 1 … layer L and pooler are shared by all tasks: a treatment sees
        their gradient. Each head belongs to one task.
        """
        blocks = {}
        for name, p in self.named_parameters():
            part, *rest = name.split(".")
            if part == "heads":
                block = f"head {rest[0]}"
            elif rest[0] == "layers":
                block = f"layer {int(rest[1]) + 1}"
            else:
                block = "pooler" if rest[0] == "pooler" else "embeddings"
            blocks.setdefault(block, optim.Block(block, {}, shared=part != "heads"))
            blocks[block].parameters[name] = p
        return list(blocks.values())


# --- 4.2 Scores ---

def accuracy(predictions, labels) -> float:
    """Share of right examples, 0 to 1.   [report 4.2]   arrays [N], [N] -> float"""
    return float(np.mean(np.asarray(predictions) == np.asarray(labels)))


def pearson(predictions, labels) -> float:
    """Linear correlation, -1 to 1.   [report 4.2]   arrays [N], [N] -> float

        r = Σ (x - x̄)(y - ȳ) / √(Σ (x - x̄)² Σ (y - ȳ)²)

    (1, 2, 3) with (1, 2, 4): 3 / √(2 · 14/3) = 0.982. Adding a constant to all predictions,
    or doubling them, changes nothing. If one side is constant r is 0/0, which is undefined:
    it is reported as 0, with a warning; so is r of predictions that are not finite.
    """
    def centred(values):
        """Deviations from the mean, the largest ± 1; None if all values are equal."""
        values = np.asarray(values, np.float64)
        # So that no square overflows, and the mean of equal numbers is exactly their value.
        values = values / (np.abs(values).max() or 1)
        deviations = values - values.mean()
        spread = np.abs(deviations).max()
        return deviations / spread if spread > 0 else None

    if not (np.isfinite(predictions).all() and np.isfinite(labels).all()):
        warnings.warn("Pearson's r is undefined: some predictions are not finite; "
                      "reported as 0", stacklevel=2)
        return 0.0
    x, y = centred(predictions), centred(labels)
    if x is None or y is None:
        warnings.warn(f"Pearson's r of constant {'predictions' if x is None else 'labels'} "
                      f"is undefined; reported as 0", stacklevel=2)
        return 0.0
    return float((x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum()))


def overall_score(scores: dict) -> float:
    """Mean over the tasks, with r moved from [-1, 1] to [0, 1].   {Task: score} -> float

        (SST accuracy + paraphrase accuracy + (STS r + 1) / 2) / 3     [report, Tables 2, 3]

    .517, .871, .891 -> .778. (D12: Table 2's "0.0493" is .493, and its "0.772" is .773.)
    """
    return sum((score + 1) / 2 if task.metric is pearson else score
               for task, score in scores.items()) / len(scores)


def all_logits(model, task, dataset, tokenizer, device="cpu",
               autocast=contextlib.nullcontext, batch_size=64) -> torch.Tensor:
    """Logits of a whole set, [N, C] or [N], in the file's order.

    autocast() is a context for the passes. Leaves each module in the mode it was in, and
    shows how far it is if it takes long.
    """
    order = data.in_order_of_length(data.lengths(dataset, model.con), batch_size)
    logits, label = [], os.path.basename(dataset.path) or task.name
    with loop.evaluating(model), torch.no_grad():
        for indices in progress.track(ranks.share(order), label, "batches",
                                      -(-len(order) // ranks.here.world)):
            batch = data.collate(dataset, indices, tokenizer, model.con,
                                 model.max_length).to(device)
            with autocast():
                logits.append(model(task, batch).cpu())
    whole = torch.cat(ranks.gather(logits))
    loop.warn_unless_finite(whole, label)
    # Undo the sorting: np.concatenate(order)[i] is the example whose logits are in row i.
    return whole[np.argsort(np.concatenate(order))]


def outputs(model, task, dataset, tokenizer, **where):
    """A whole set's predictions [N], and probabilities [N, C], or [N] where C = 1.

    numpy, in the file's order; probabilities are None for a task without classes. where:
    device, on which the model is, autocast and batch_size, as in all_logits().
    """
    logits = all_logits(model, task, dataset, tokenizer, **where)
    probabilities = task.probabilities and task.probabilities(logits).numpy()
    return task.predict(logits).numpy(), probabilities


def evaluate(model, task, dataset, tokenizer, **where):
    """A whole set's predictions [N], and their score, or None without labels."""
    predictions, _ = outputs(model, task, dataset, tokenizer, **where)
    if dataset.labels is None:
        return predictions, None
    return predictions, declared.score(task, predictions, dataset.labels)
