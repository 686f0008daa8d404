"""Masked-LM pre-training: from scratch, or further, on the texts of a task.

    python tools/pretrain.py --text FILE … --out DIR --vocab FILE        (from scratch)
    python tools/pretrain.py --text FILE … --out DIR --weights NAME      (further)

The report's last sentence: "Further work may improve upon this by … further enhancing
pretraining for the upstream minBERT model." A .csv file gives its columns sentence, or
sentence1 and sentence2 as a pair; any other file a text a line, or two separated by a tab.
With --next-sentence it also learns whether the second text of a pair is its own, as BERT
did. The encoder in OUT/model can be given to train.py as --weights. A run folder, --resume,
Ctrl-C and the log are those of train.py.

Symbols: B texts in a batch, T tokens in the longest, M masked tokens of a batch, V entries
of the vocabulary.
Leaves out: whole-word masking.
"""

import argparse
import csv
import os
import shutil
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import bert                                                         # noqa: E402
import data                                                         # noqa: E402
import multitask                                                    # noqa: E402
import optim                                                        # noqa: E402
from plumbing import flags, machine, run, sources                   # noqa: E402


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
        """data.Batch, labels [B, T] (-100: not asked) -> {name: mean loss in nats}.

        batch.labels [B]: 1 where the second text belongs to the first, else 0; or None.
        Only the M positions that are asked meet the vocabulary: a seventh of the work.
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

    input_ids [B, T]; special [B, T], True where nothing may be asked. Returns (inputs,
    labels), both [B, T]. Of the asked tokens 80% become [MASK], 10% a random token, 10%
    stay: fine-tuning never shows a [MASK], so the model must not wait for one.
    """
    draw = torch.rand(input_ids.shape).masked_fill(special, 2)
    asked = (draw < share) | (draw == draw.min())       # at least one: no mean over nothing
    labels = torch.where(asked, input_ids, -100)
    fate = torch.rand(input_ids.shape)
    random = torch.randint(vocab_size, input_ids.shape)
    inputs = torch.where(asked & (fate < 0.8), mask_id, input_ids)
    return torch.where(asked & (fate >= 0.9), random, inputs), labels


def read_texts(path, tokenizer):
    """A file's texts.   -> [(ids,) or (ids, ids), …]; ValueError if there are none"""
    texts = []
    with open(path, encoding="utf-8", newline="") as file:
        if path.endswith(".csv"):
            for row in csv.DictReader(file, delimiter="\t"):
                text = [row[name] for name in ("sentence", "sentence1", "sentence2")
                        if row.get(name)]
                texts += [tuple(map(tokenizer, text))] if text else []
        else:
            texts = [tuple(map(tokenizer, line.rstrip("\n").split("\t")[:2]))
                     for line in file if line.strip()]
    if not texts:
        raise ValueError(f"{path}: needed texts in columns sentence, sentence1, sentence2, "
                         f"or one a line; got none")
    return texts


class Pretrainer:
    """All that changes during pre-training, and the step that changes it."""

    def __init__(self, args, model, tokenizer, texts):
        self.args, self.model, self.tokenizer = args, model, tokenizer
        order = np.random.default_rng(args.seed).permutation(len(texts))
        held = max(1, len(texts) // 50)
        # Single sentences and pairs go to streams of their own: a batch is of one kind.
        kinds = {"single": [], "pair": []}
        for i in order[held:]:
            kinds["pair" if len(texts[i]) == 2 else "single"].append(texts[i])
        self.held_out = [texts[i] for i in order[:held]]
        # In the order of the file, for --next-sentence.
        self.pairs = [text for text in texts if len(text) == 2]
        self.place = {id(pair): i for i, pair in enumerate(self.pairs)}
        self.sets = {kind: data.Dataset("", [""] * len(part), part, None)
                     for kind, part in kinds.items() if len(part) >= args.batch_size}
        if not self.sets:
            raise ValueError(f"--text: needed at least {args.batch_size} texts, got "
                             f"{len(texts) - held}; use a smaller --batch-size")
        self.streams = {kind: data.Stream(data.lengths(part, True), args.batch_size,
                                          (args.seed, k))
                        for k, (kind, part) in enumerate(self.sets.items())}
        self.device = next(model.parameters()).device
        self.autocast, self.precision = machine.choose_precision(args.amp, self.device)
        self.flat = optim.FlatParameters({"encoder": list(model.named_parameters())}, 1)
        self.regions = multitask.regions(self.flat, "model")
        self.optimizer = optim.AdamW(self.flat.param_groups(args.weight_decay), lr=args.lr)
        self.step_number, self.total = 0, args.max_steps

    def mismatch(self, pair, near, draw):
        """The first text with the second one of the next pair in the file, or of any.

        Why the next: in the order of a document it is about the same topic, so what counts
        is what is said of it. draw in [0, 1) picks any other.
        """
        step = 1 if near else 1 + int(draw * (len(self.pairs) - 1))
        return pair[0], self.pairs[(self.place[id(pair)] + step) % len(self.pairs)][1]

    def batch_of(self, dataset, indices):
        """-> (data.Batch with masks in it, labels), on the device"""
        tokenizer, size = self.tokenizer, self.model.bert.config.vocab_size
        texts, follows = [dataset.tokens[i] for i in indices], None
        if self.args.next_sentence and len(texts[0]) == 2:
            fate, anywhere = torch.rand(2, len(texts)).tolist()
            follows = np.array([f < 0.5 for f in fate], np.float32)
            texts = [self.mismatch(pair, f < 0.75, a) if f >= 0.5 else pair
                     for pair, f, a in zip(texts, fate, anywhere)]
        batch = data.collate(
            data.Dataset("", [], texts, follows), range(len(texts)), tokenizer, True,
            self.model.bert.config.max_position_embeddings)
        special = sum(batch.input_ids == i for i in (tokenizer.pad, tokenizer.cls,
                                                     tokenizer.sep)).bool()
        batch.input_ids, labels = mask_tokens(batch.input_ids, special,
                                              tokenizer.ids["[MASK]"], size)
        return batch.to(self.device), labels.to(self.device)

    def step(self):
        """One update.   -> its line of metrics"""
        rate = self.args.lr * optim.learning_rate_factor(self.step_number, self.total,
                                                         self.args.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        # Each kind in proportion to its texts; the choice is a function of the step alone.
        sizes = [len(part) for part in self.sets.values()]
        pick = np.random.default_rng([self.args.seed, self.step_number]).choice(
            len(sizes), p=np.array(sizes) / sum(sizes))
        kind = list(self.sets)[pick]

        def loss_fn(task, indices):
            batch, labels = self.batch_of(self.sets[kind], indices)
            with self.autocast():
                losses = self.model(batch, labels)
            return sum(losses.values()), {name: x.detach() for name, x in losses.items()}
        log = multitask.backward(self.flat, [{kind: self.streams[kind].next()}], loss_fn,
                                 {kind: 0})
        treated = multitask.treat(self.flat, self.regions, [0], multitask.plain_sum, 1.0,
                                  None)
        if treated is not None:
            self.optimizer.step()
        self.step_number += 1
        return {"step": self.step_number, "lr": rate, **log,
                **multitask.describe(treated, [kind])}

    @torch.no_grad()
    def held_out_loss(self):
        """Mean masked-LM loss on held-out texts, under masks of its own.   -> nats"""
        self.model.eval()
        states = machine.random_states()
        torch.manual_seed(0)
        losses = {}
        for number in (1, 2):
            part = [text for text in self.held_out if len(text) == number]
            dataset = data.Dataset("", [""] * len(part), part, None)
            for start in range(0, len(part), 64):
                with self.autocast():
                    found = self.model(*self.batch_of(
                        dataset, range(start, min(start + 64, len(part)))))
                for name, value in found.items():
                    losses.setdefault(name, []).append(value.item())
        machine.set_random_states(states)
        self.model.train()
        return {name: float(np.mean(values)) for name, values in losses.items()}

    def state(self):
        return {"step": self.step_number, "theta": self.flat.theta,
                "optimizer": self.optimizer.state_dict(), "random": machine.random_states(),
                "streams": {kind: list(s.position) for kind, s in self.streams.items()}}

    def restore(self, state):
        self.step_number = state["step"]
        self.flat.theta.copy_(state["theta"])
        self.optimizer.load_state_dict(state["optimizer"])
        machine.set_random_states(state["random"])
        for kind, position in state["streams"].items():
            self.streams[kind].position = position

    def save(self, path):
        self.model.bert.save_pretrained(path, half=self.args.half)
        shutil.copyfile(self.tokenizer.path, os.path.join(path, "vocab.txt"))


def parser():
    whole, share = flags.number(int, 1), flags.number(float, 0, 1)
    amount = flags.number(float, 0)
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False,
                                usage=argparse.SUPPRESS)
    p.add_argument("--text", nargs="+", metavar="FILE", help="files of texts")
    p.add_argument("--weights", metavar="DIR|NAME", help="go on from this BERT")
    p.add_argument("--vocab", metavar="FILE", help="from scratch: the vocabulary")
    p.add_argument("--layers", type=whole, default=3, help="from scratch (ours)")
    p.add_argument("--hidden", type=whole, default=128, help="from scratch (ours)")
    p.add_argument("--heads", type=whole, default=4, help="from scratch (ours)")
    p.add_argument("--max-length", type=whole, default=64, help="from scratch (ours)")
    p.add_argument("--max-steps", type=whole, default=10000, help="updates (ours)")
    p.add_argument("--batch-size", type=whole, default=64, help="(ours)")
    p.add_argument("--lr", type=amount, default=1e-3, help="(ours; further: try 5e-5)")
    p.add_argument("--warmup", type=share, default=0.05, help="share of the updates (ours)")
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
    p.add_argument("--amp", choices=["auto", "off", "bf16"], default="auto",
                   help="as in train.py")
    p.add_argument("--out", metavar="DIR", help="new folder for this run")
    p.add_argument("--resume", metavar="RUN", help="go on with the run in this folder")
    p.add_argument("--checkpoint-every", type=whole, default=1000, metavar="N")
    return p


def sinusoids(T, H):
    """Waves of H / 2 lengths, of unit variance.   [Vaswani et al. 2017, sec. 3.5] -> [T, H]

    The rows for t and t + 1 differ by one rotation, for all t, so that "the token before
    this one" is a single matrix, and soon found.
    """
    rate = 10000.0 ** (-torch.arange(0, H, 2) / H)                              # [H / 2]
    angle = torch.arange(T)[:, None] * rate                                     # [T, H / 2]
    return 2 ** 0.5 * torch.cat([angle.sin(), angle.cos()], -1)


@torch.no_grad()
def start_comparing(encoder):
    """First weights from which a small BERT soon learns to compare two texts.   [ours]

    In half of the heads queries equal keys and are large: a token looks at its likes, here
    and in the other text. Words differ by more than places do, so that likes are words.
    Why: from purely random weights such heads take very long to appear. With 0.8 million
    parameters on the sample's texts the held-out next-sentence loss was .38 after 1,000
    updates with all this; with the waves alone it was .55, and .40 after 4,000.
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


def build(args):
    """-> (tokenizer, MaskedLM)"""
    torch.manual_seed(args.seed)
    if args.weights:
        encoder = bert.BertModel.from_pretrained(args.weights, args.dropout)
        vocab = os.path.join(args.weights, "vocab.txt")
    else:
        vocab = args.vocab
        encoder = bert.BertModel(bert.BertConfig(
            vocab_size=len(data.WordPiece(vocab).tokens), hidden_size=args.hidden,
            num_hidden_layers=args.layers, num_attention_heads=args.heads,
            intermediate_size=4 * args.hidden, max_position_embeddings=args.max_length,
            initializer_range=0.02 * (768 / args.hidden) ** 0.5,
            hidden_dropout_prob=args.dropout, attention_probs_dropout_prob=args.dropout))
        start_comparing(encoder)
    tokenizer = data.WordPiece(vocab, encoder.config.vocab_size)
    if "[MASK]" not in tokenizer.ids:
        raise ValueError(f"{vocab} has no [MASK]; use BERT's vocab.txt")
    return tokenizer, MaskedLM(encoder)


def pretrain(args, source):
    """-> exit status"""
    args, settings = run.resumed(args, source) if args.resume else (args, None)
    if args.resume and os.path.exists(os.path.join(args.resume, "result.json")):
        print(f"the run in {args.resume} is finished; its model is in model/")
        return 0
    if not settings and not (args.text and args.out
                             and bool(args.weights) != bool(args.vocab)):
        raise ValueError("needed --text FILE …, --out DIR, and either --weights to go on "
                         "from or --vocab to start from scratch")
    if not settings:
        run.check_free(args.out)
        # Absolute: the run can then be resumed from any working directory.
        args.text = [os.path.abspath(path) for path in args.text]
        args.vocab = args.vocab and os.path.abspath(args.vocab)
        args.weights = args.weights and sources.find_weights(args.weights)
    tokenizer, model = build(args)
    texts = [text for path in args.text for text in read_texts(path, tokenizer)]
    device = machine.find_device(args.device)
    model = model.to(device).train()
    trainer = Pretrainer(args, model, tokenizer, texts)
    files = [*args.text, tokenizer.path] + [
        path for name in ("config.json", "model.safetensors", "pytorch_model.bin")
        if args.weights and os.path.exists(path := os.path.join(args.weights, name))]
    folder = run.Folder.open(args, source, settings, {path: path for path in files},
                             machine.description(device, trainer.precision))
    if folder.state:
        trainer.restore(folder.state)
    print(f"run: {folder.path}\n  {len(texts)} texts, {trainer.total} updates, "
          f"{trainer.flat.theta.numel():,} parameters, {trainer.precision}", flush=True)
    progress = run.Progress(trainer.total, trainer.step_number)
    start = time.monotonic() - (folder.state or {"seconds": 0.0})["seconds"]
    with run.Stop() as stop:
        while trainer.step_number < trainer.total:
            line = trainer.step()
            loss = next(value for name, value in line.items() if name.startswith("loss"))
            progress.show(trainer.step_number, f"loss {loss:.3f}")
            due = trainer.step_number % args.checkpoint_every == 0
            if due or trainer.step_number == trainer.total:
                held_out = trainer.held_out_loss()
                line |= {f"held_out_{name}": value for name, value in held_out.items()}
                progress.clear()
                print(f"update {trainer.step_number}: held out " + "  ".join(
                    f"{name} {value:.3f}" for name, value in held_out.items()), flush=True)
            folder.log(line)
            if due or stop.asked or trainer.step_number == trainer.total:
                folder.checkpoint({**trainer.state(), "seconds": time.monotonic() - start})
            if stop.asked:
                print(f"stopped after update {trainer.step_number} of {trainer.total}; go "
                      f"on with: python tools/pretrain.py --resume {folder.path}")
                return 128 + stop.asked
    folder.replace_folder("model", trainer.save)
    run.write_json(folder / "result.json", {
        "seconds": round(time.monotonic() - start, 1),
        "args": vars(args)})
    folder.close()
    print(f"{run.clock(time.monotonic() - start)} in all; use it as --weights "
          f"{folder / 'model'}")
    return 0


def main(argv=None):
    p = parser()
    args = p.parse_args(argv)
    return run.one_line(lambda: pretrain(args, flags.given(p, argv)))


if __name__ == "__main__":
    sys.exit(main())
