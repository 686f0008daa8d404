"""Masked-LM pre-training: from scratch, or further, on the texts of a task.

    python tools/pretrain.py --text FILE … --out DIR --vocab FILE
    python tools/pretrain.py --text FILE … --out DIR --weights NAME

With --vocab it starts from scratch, with --weights it goes on from a BERT. The report's
last sentence: "Further work may improve upon this by … further enhancing pretraining for
the upstream minBERT model." From a .csv file it takes the column sentence, or sentence1 and
sentence2 as a pair; any other file has one text a line, or two separated by a TAB. With
--next-sentence the model also learns whether the second text of a pair is its own, as BERT
did. The encoder in OUT/model can be given to train.py as --weights. The run's folder,
--resume, Ctrl-C and the log are those of train.py; after every --checkpoint-every updates
comes the loss on held-out texts, one of 50.

Symbols: B texts in a batch, T tokens in the longest, M masked positions of a batch, V
entries of the vocabulary.
Leaves out: whole-word masking.
"""

import argparse
import dataclasses
import functools
import math
import os
import sys
import warnings
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import bert
import data
import multitask
import optim
from plumbing import (
    command,
    flags,
    folder,
    loop,
    machine,
    progress,
    reading,
    runs,
    sources,
    tsv,
)
from plumbing.console import quoted
from plumbing.progress import clock

HELD_OUT = 50       # one text of so many is not trained on

# --- The model and its task ---

class MaskedLM(nn.Module):
    """BERT with its masked-LM head.   [Devlin et al. 2018, sec. 3.1; their released code]

        logits = W_E LN(GELU(W h + b)) + c        W_E: the word embeddings, tied
    """

    def __init__(self, encoder):
        super().__init__()
        H = encoder.config.hidden_size
        self.bert, self.dense = encoder, nn.Linear(H, H)
        self.norm = nn.LayerNorm(H, eps=encoder.config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(encoder.config.vocab_size))
        self.next_sentence = nn.Linear(H, 1)
        for layer in (self.dense, self.next_sentence):
            nn.init.normal_(layer.weight, std=encoder.config.initializer_range)

    def forward(self, batch, labels):
        """data.Batch, labels [B, T] (-100: not masked) -> {name: mean loss in nats}.

        batch.labels [B]: 1 where the second text belongs to the first, else 0; or None.
        Logits are computed at the M masked positions only: a seventh of the work.
        """
        x = self.bert.embed(batch.input_ids, batch.token_type_ids)
        hidden_states, pooled = self.bert.encode(x, batch.attention_mask)
        h = hidden_states[labels != -100]                                       # [M, H]
        h = self.norm(F.gelu(self.dense(h)))
        logits = h @ self.bert.word_embeddings.weight.T + self.bias             # [M, V]
        losses = {"loss": F.cross_entropy(logits.float(), labels[labels != -100])}
        if batch.labels is not None:
            losses["next"] = F.binary_cross_entropy_with_logits(
                self.next_sentence(pooled).squeeze(-1).float(), batch.labels)
        return losses


def mask_tokens(input_ids, special, mask_id, vocab_size, share=0.15):
    """BERT's 80/10/10 rule, drawn anew each time.   [Devlin et al. 2018, sec. 3.1]

    input_ids [B, T]; special [B, T], True where nothing may be masked. Returns (inputs,
    labels), both [B, T]. Of the masked positions 80% get [MASK], 10% a random token, 10%
    keep theirs: fine-tuning never shows a [MASK], so the model must not wait for one.
    """
    draw = torch.rand(input_ids.shape).masked_fill(special, 2)
    masked = (draw < share) | (draw == draw.min())      # at least one: no mean over nothing
    labels = torch.where(masked, input_ids, -100)
    fate = torch.rand(input_ids.shape)
    random = torch.randint(vocab_size, input_ids.shape)
    inputs = torch.where(masked & (fate < 0.8), mask_id, input_ids)
    return torch.where(masked & (fate >= 0.9), random, inputs), labels


class NextSentence:
    """Half of the pairs get another's second text.   [Devlin et al. 2018, sec. 3.1]

    pairs: in the order of the file. Why that of the next pair as often as that of any: in a
    document the next pair is about the same topic, so what counts is what is said of it.
    """

    def __init__(self, pairs):
        self.pairs = pairs
        self.place = {id(pair): i for i, pair in enumerate(pairs)}

    def draw(self, pairs):
        """-> (pairs, follows): follows [B] is 1 where the second text is the pair's own"""
        fate, anywhere = torch.rand(2, len(pairs)).tolist()
        follows = np.array([f < 0.5 for f in fate], np.float32)
        drawn = []
        for pair, f, a in zip(pairs, fate, anywhere):
            if f >= 0.5:
                step = 1 if f < 0.75 else 1 + int(a * (len(self.pairs) - 1))
                other = self.pairs[(self.place[id(pair)] + step) % len(self.pairs)]
                pair = pair[0], other[1]
            drawn.append(pair)
        return drawn, follows


# --- Texts ---

def read_texts(path, tokenizer):
    """A file's texts.   -> [(ids,) or (ids, ids), …]; ValueError if there are none"""
    if path.endswith(".csv"):
        _, _, names = tsv.decode(path, [])
        columns = [name for name in ("sentence", "sentence1", "sentence2") if name in names]
        texts = [row for _, row in tsv.read(path, columns)] if columns else []
    else:
        texts = [line.split("\t")[:2] for line in reading.read_text(path).split("\n")
                 if line.strip()]
    if not texts:
        raise ValueError(f"{path}: needed texts in columns sentence, sentence1, sentence2, "
                         f"or one a line; got none")
    return [tuple(map(tokenizer, text)) for text
            in progress.track(texts, os.path.basename(path), "texts")]


def split_texts(texts, seed, batch_size):
    """-> ({kind: data.Dataset} to train on, [held-out texts])

    Single texts and pairs are kinds of their own: a batch holds texts of one kind.
    """
    order = np.random.default_rng(seed).permutation(len(texts))
    held_out = max(1, len(texts) // HELD_OUT)
    kinds = {"single": [], "pair": []}
    for i in order[held_out:]:
        kinds["pair" if len(texts[i]) == 2 else "single"].append(texts[i])
    sets = {kind: dataset_of(part) for kind, part in kinds.items()
            if len(part) >= batch_size}
    if not sets:
        raise ValueError(f"--text: needed at least {batch_size} texts, got "
                         f"{len(texts) - held_out}; use a smaller --batch-size")
    for kind, part in kinds.items():
        if part and kind not in sets:
            warnings.warn(f"--text: {len(part)} {kind} texts are left out, as they do not "
                          f"fill a batch of {batch_size}; use a smaller --batch-size")
    return sets, [texts[i] for i in order[:held_out]]


def dataset_of(texts, labels=None):
    return data.Dataset("", [""] * len(texts), texts, labels)


def make_plan(sets, seed, steps, steps_between):
    """The kind of each step, in proportion to its texts.   -> [[kind, …], …]

    An "epoch" of this plan is what lies between two evaluations.
    """
    kinds, sizes = list(sets), np.array([len(part) for part in sets.values()])
    chosen = [kinds[np.random.default_rng([seed, step]).choice(len(kinds),
                                                               p=sizes / sizes.sum())]
              for step in range(steps)]
    return [chosen[i:i + steps_between] for i in range(0, steps, steps_between)]


# --- The loop ---

@dataclasses.dataclass
class Pretraining:
    """The model, its texts, and everything that a step changes."""
    model: MaskedLM
    tokenizer: data.WordPiece
    sets: dict                          # {kind: data.Dataset}
    held_out: list                      # texts
    next_sentence: NextSentence | None
    autocast: Callable
    flat: optim.FlatParameters
    optimizer: optim.AdamW
    streams: dict                       # {kind: data.Stream}
    scale: optim.LossScale

    def batch_of(self, texts):
        """-> (data.Batch, labels [B, T]) with masks, on the device"""
        tokenizer, config, follows = self.tokenizer, self.model.bert.config, None
        if self.next_sentence and len(texts[0]) == 2:
            texts, follows = self.next_sentence.draw(texts)
        batch = data.collate(dataset_of(texts, follows), range(len(texts)), tokenizer, True,
                             config.max_position_embeddings)
        special = sum(batch.input_ids == i for i in (tokenizer.pad, tokenizer.cls,
                                                     tokenizer.sep)).bool()
        batch.input_ids, labels = mask_tokens(batch.input_ids, special,
                                              tokenizer.ids["[MASK]"], config.vocab_size)
        device = self.flat.theta.device
        return batch.to(device), labels.to(device)

    def loss(self, kind, indices):
        """-> (the sum of the losses, times float16's scale; {name: scalar})"""
        batch, labels = self.batch_of([self.sets[kind].tokens[i] for i in indices])
        with self.autocast():
            losses = self.model(batch, labels)
        log = {name: x.detach() for name, x in losses.items()}
        return self.scale.value * sum(losses.values()), log

    @torch.no_grad()
    def held_out_losses(self):
        """Means over the masked tokens and pairs of held-out texts, always with the same
        masks.   -> {name: nats}
        """
        device = self.flat.theta.device
        states, means = machine.random_states(device), {}
        try:
            torch.manual_seed(0)
            for number in (1, 2):
                texts = [text for text in self.held_out if len(text) == number]
                starts = range(0, len(texts), 64)
                for start in progress.track(starts, "held out", "batches"):
                    with loop.evaluating(self.model), self.autocast():
                        batch, labels = self.batch_of(texts[start:start + 64])
                        found = self.model(batch, labels)
                    counts = {"loss": (labels != -100).sum().item(), "next": len(labels)}
                    for name, value in found.items():
                        values, weights = means.setdefault(name, ([], []))
                        values.append(value.item())
                        weights.append(counts[name])
        finally:        # training must not notice, also if it is stopped here
            machine.set_random_states(states, device)
        return {name: float(np.average(values, weights=weights))
                for name, (values, weights) in means.items()}

    def save(self, path, half):
        self.model.bert.save_pretrained(path, half=half)
        self.tokenizer.save(path)


def fit(training, session, plan, *, lr, warmup):
    """The loop, with a loss on held-out texts after each part of the plan.

    session: a loop.Loop; plan: see make_plan(); lr, warmup: of the schedule.
    """
    flat, total = training.flat, sum(map(len, plan))
    regions = multitask.regions(flat)
    for _, steps in session.parts(plan):
        for step, kind in steps:
            rate = lr * optim.learning_rate_factor(step, total, warmup)
            for group in training.optimizer.param_groups:
                group["lr"] = rate
            losses = multitask.backward(flat, [{kind: training.streams[kind].next()}],
                                        training.loss, {kind: 0})
            treated = multitask.treat(flat, regions, {kind: 0}, multitask.plain_sum, 1.0,
                                      scale=training.scale.value)
            if treated is not None:
                training.optimizer.step()
            session.log_step({"step": step + 1, "lr": rate, **losses,
                              **training.scale.log(), **multitask.describe(treated)})
            training.scale.update(skipped=treated is None)
            if treated is None:
                loop.check_divergence(flat.theta, session.skipped, step, losses)
        with session.interruptible():
            held_out = training.held_out_losses()
        session.log({"step": session.step, **{f"held_out_{name}": value
                                              for name, value in held_out.items()}})
        session.say(f"update {session.step}: held out " + "  ".join(
            f"{name} {value:.3f}" for name, value in held_out.items()))
        if not all(map(math.isfinite, held_out.values())):
            raise loop.Diverged(f"diverged: the held-out loss is not finite after update "
                                f"{session.step}; try a smaller --lr, or --amp off")


# --- The start ---

def sinusoids(T, H):
    """Sines and cosines of H / 2 frequencies, variance 1.   [Vaswani et al. 2017, sec. 3.5]

    -> [T, H]. The rows for t and t + 1 differ by one rotation, the same for all t: one
    matrix finds "the token before this one", and is soon learned.
    """
    frequency = 10000.0 ** (-torch.arange(0, H, 2) / H)                         # [H / 2]
    angle = torch.arange(T)[:, None] * frequency                                # [T, H / 2]
    return 2 ** 0.5 * torch.cat([angle.sin(), angle.cos()], -1)


@torch.no_grad()
def start_comparing(encoder):
    """Initial weights from which a small BERT soon learns to compare two texts.   [ours]

    In half of the heads queries equal keys and are large: a token attends to tokens like
    itself, in both texts. Word embeddings are larger than position embeddings, so that
    "like itself" means the same word.
    Why: from purely random weights such heads take very long to appear. With 0.8 million
    parameters on the sample's texts the held-out next-sentence loss was .38 after 1,000
    updates with all this; with the sinusoids alone it was .55, and .40 after 4,000.
    """
    H, std = encoder.config.hidden_size, encoder.config.initializer_range
    positions = encoder.position_embeddings.weight
    positions.copy_(std * sinusoids(len(positions), H))
    encoder.word_embeddings.weight.mul_(4)
    A = encoder.config.num_attention_heads
    half = slice(A // 2 * H // A)
    for layer in encoder.layers:
        layer.query.weight[half] *= 3
        layer.key.weight[half] = layer.query.weight[half]


def build(seed, dropout, weights=None, vocab=None, *, layers, hidden, heads, max_length):
    """From weights, or from scratch with a vocabulary.   -> (data.WordPiece, MaskedLM)"""
    machine.seed(seed)
    if weights:
        encoder = bert.BertModel.from_pretrained(weights, dropout)
    else:
        encoder = bert.BertModel(bert.BertConfig(
            vocab_size=len(data.WordPiece(vocab).tokens), hidden_size=hidden,
            num_hidden_layers=layers, num_attention_heads=heads,
            intermediate_size=4 * hidden, max_position_embeddings=max_length,
            initializer_range=0.02 * (768 / hidden) ** 0.5, hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout))
        start_comparing(encoder)
    tokenizer = data.WordPiece(weights or vocab, encoder.config.vocab_size)
    if "[MASK]" not in tokenizer.ids:
        raise ValueError(f"{tokenizer.path} has no [MASK]; use BERT's vocab.txt")
    return tokenizer, MaskedLM(encoder)


def prepare(tokenizer, model, texts, *, seed, batch_size, next_sentence, lr, weight_decay,
            autocast):
    """-> Pretraining. model: on its device already."""
    sets, held_out = split_texts(texts, seed, batch_size)
    if next_sentence and "pair" not in sets:
        raise ValueError(f"--next-sentence: needed {batch_size} pairs or more to train on; "
                         f"a pair is a line of a file with two columns of text")
    flat = optim.FlatParameters([optim.Block("model", dict(model.named_parameters()))], 1)
    pairs = NextSentence([text for text in texts if len(text) == 2])
    return Pretraining(
        model, tokenizer, sets, held_out, pairs if next_sentence else None, autocast, flat,
        optimizer=optim.AdamW(flat.param_groups(weight_decay), lr=lr),
        streams={kind: data.Stream(data.lengths(part, True), batch_size, (seed, k))
                 for k, (kind, part) in enumerate(sets.items())},
        scale=optim.LossScale(machine.is_float16(autocast, flat.theta.device)))


def pretrain(args, source):
    """One run, from its flags or its checkpoint to its model.   -> exit status"""
    settings = None
    if args.resume:
        values, settings = folder.resumed(vars(args), source, args.resume, parser())
        args = argparse.Namespace(**{**values, "resume": args.resume})
        if os.path.exists(os.path.join(args.resume, "result.json")):
            print(f"the run in {args.resume} is finished; its model is in model/")
            return 0
    elif not (args.text and args.out and bool(args.weights) != bool(args.vocab)):
        raise ValueError("needed --text FILE …, --out DIR, and either --weights to "
                         "continue from or --vocab to start from scratch")
    elif args.vocab and args.hidden % args.heads:
        raise ValueError(f"--hidden {args.hidden} must be a multiple of --heads "
                         f"{args.heads}; change one of them")
    else:
        folder.check_free(args.out)
        # Absolute: the run can then be resumed from any working directory.
        args.text = [os.path.abspath(path) for path in args.text]
        args.vocab = args.vocab and os.path.abspath(args.vocab)
        args.weights = args.weights and sources.find_weights(args.weights)
    device = machine.find_device(args.device)
    autocast, precision = machine.choose_precision(args.amp, device)
    tokenizer, model = build(args.seed, args.dropout, args.weights, args.vocab,
                             layers=args.layers, hidden=args.hidden, heads=args.heads,
                             max_length=args.max_length)
    texts = [text for path in args.text for text in read_texts(path, tokenizer)]
    training = prepare(tokenizer, model.to(device).train(), texts, seed=args.seed,
                       batch_size=args.batch_size, next_sentence=args.next_sentence,
                       lr=args.lr, weight_decay=args.weight_decay, autocast=autocast)
    plan = make_plan(training.sets, args.seed, args.max_steps, args.checkpoint_every)
    files = {path: path for path in [*args.text, tokenizer.path]}
    if args.weights:
        files.update(sources.files_of({}, args.weights))
    here = machine.description(device, precision)
    if args.resume:
        folder.compare(settings, args.resume, files, here)
        run = folder.Folder.reopen(args.resume, settings)
    else:
        run = folder.Folder.create(args.out, folder.new_settings(args, source, files, here))
    # A part of the plan ends with a checkpoint, so there is none within it.
    session = loop.Loop(run, runs.resume(run, training), args.max_steps, args.max_steps + 1)
    print(f"run: {run.path}\n  {len(texts)} texts, {args.max_steps} updates, "
          f"{training.flat.theta.numel():,} parameters, {precision}", flush=True)
    try:
        with session:
            fit(training, session, plan, lr=args.lr, warmup=args.warmup)
            run.replace_folder("model", functools.partial(training.save, half=args.half))
    except loop.Interrupted:
        print(f"stopped after update {session.step} of {args.max_steps}; to continue: "
              f"python tools/pretrain.py --resume {quoted(run.path)}")
        return 128 + session.stop.asked
    except loop.Diverged as error:
        print(f"pretrain.py: {error}; the log is in {run.path}", file=sys.stderr)
        return 1
    folder.write_json(run / "result.json", {"seconds": round(session.seconds, 1),
                                            "args": vars(args)})
    print(f"{clock(session.seconds)} in all; use it as --weights {run / 'model'}")
    return 0


def parser():
    whole, share = flags.number(int, 1), flags.number(float, 0, 1)
    amount = flags.number(float, 0, flags.LARGEST)
    p = command.Parser(__doc__)
    p.add_argument("--text", nargs="+", metavar="FILE", help="files of texts")
    p.add_argument("--weights", metavar="DIR|NAME", help="continue from this BERT")
    p.add_argument("--vocab", metavar="FILE", help="from scratch: the vocabulary")
    p.add_argument("--layers", type=flags.number(int, 1, 128), default=3,
                   help="from scratch (ours: 3)")
    p.add_argument("--hidden", type=flags.number(int, 1, 16384), default=128,
                   help="from scratch (ours: 128)")
    p.add_argument("--heads", type=flags.number(int, 1, 128), default=4,
                   help="from scratch (ours: 4)")
    p.add_argument("--max-length", type=flags.number(int, 5, 16384), default=64,
                   help="from scratch (ours: 64)")
    p.add_argument("--max-steps", type=flags.number(int, 1, 10 ** 6), default=10000,
                   help="updates (ours: 10000)")
    p.add_argument("--batch-size", type=whole, default=64, help="texts (ours: 64)")
    p.add_argument("--lr", type=amount, default=1e-3,
                   help="(ours: 1e-3; further: try 5e-5)")
    p.add_argument("--warmup", type=share, default=0.05,
                   help="share of the updates (ours: 0.05)")
    p.add_argument("--weight-decay", type=amount, default=0.01, help="(BERT: 0.01)")
    p.add_argument("--next-sentence", action="store_true", help="also learn whether two "
                   "texts belong together (BERT)")
    p.add_argument("--dropout", type=flags.number(float, 0, 0.99), default=0.1,
                   metavar="P", help="everywhere (BERT: 0.1; a small model learns more "
                   "without)")
    p.add_argument("--half", action="store_true", help="save the model in float16")
    p.add_argument("--seed", type=flags.number(int, 0, 2 ** 32 - 1), default=0,
                   help="of weights, orders and masks (0)")
    p.add_argument("--device", default="auto", help="as in train.py")
    p.add_argument("--amp", choices=["auto", "off", *machine.HALVES], default="auto",
                   help="as in train.py")
    p.add_argument("--out", metavar="DIR", help="new folder for this run")
    p.add_argument("--resume", metavar="RUN", help="continue the run in this folder")
    p.add_argument("--checkpoint-every", type=whole, default=1000, metavar="N",
                   help="updates between checkpoints (ours: 1000)")
    return p


def main(argv=None):
    p = parser()
    return command.one_line(lambda: pretrain(p.parse_args(argv), flags.given(p, argv)))


if __name__ == "__main__":
    sys.exit(main())
