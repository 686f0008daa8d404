"""minBERT: the bidirectional transformer encoder that all three tasks share.

    3.1    BertConfig, Dropout, attention(), BertLayer, BertModel: embed() and encode()
    4.1    from_pretrained(), save_pretrained(): the Hugging Face checkpoint format

Symbols: B sequences in a batch, T tokens in the longest of them, H features of a token
(hidden_size), A attention heads, D = H / A features of a head.

    input_ids [B, T]  --embed-->  x [B, T, H]  --encode-->  hidden states [B, T, H]
                                                            pooled output [B, H]

Why two functions: SMART (report 3.5) perturbs x, which lies between them.
Shapes, dropout positions, post-layer-norm order and the exact GELU are those of the
released BERT [Devlin et al. 2018], so its weights give its outputs to 1e-5.
Leaves out: the masked-LM and next-sentence heads, decoders, relative positions.
"""

import dataclasses
import json
import math
import os
import warnings

import torch
import torch.nn.functional as F
from torch import nn

from plumbing import checkpoint, safetensors

# --- 3.1 Configuration ---

@dataclasses.dataclass
class BertConfig:
    """The sizes of an encoder, named as in config.json; the defaults are bert-base-uncased.

    With these it has 109.5 million parameters: 23.8 million in the embeddings, 7.1 million
    (12 H² + 13 H) in each layer, 0.6 million in the pooler. Raises ValueError for a size
    that makes no sense, saying which.
    """
    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    initializer_range: float = 0.02
    # Entries of config.json that only other software needs; they are written out again.
    others: dict = dataclasses.field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if field.name == "others":
                continue
            value = getattr(self, field.name)
            whole = field.type in (int, "int")
            if type(value) is not int and (whole or type(value) is not float):
                kind = "a whole number" if whole else "a number"
                raise ValueError(f"{field.name} must be {kind}, got "
                                 f"{safetensors.shown(value)}")
            low, high = (1, 10 ** 7) if whole else (0.0, 1.0)
            if field.name in ("num_hidden_layers", "num_attention_heads"):
                high = 128
            if field.name == "max_position_embeddings":
                low = 5                          # [CLS] a [SEP] b [SEP]
            if field.name.endswith("dropout_prob"):
                high = 0.999                     # with 1 nothing would be left to scale up
            if not low <= value <= high:         # False for NaN too
                raise ValueError(f"{field.name} must be in [{low}, {high}], got "
                                 f"{safetensors.shown(value)}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"hidden_size must be a multiple of num_attention_heads, got "
                             f"{self.hidden_size} and {self.num_attention_heads}")

    @classmethod
    def from_json(cls, path):
        """path of a config.json -> BertConfig. Raises ValueError naming path and entry."""
        entries = checkpoint.read_json(path)
        checkpoint.refuse_other_models(path, entries)
        known = [field.name for field in dataclasses.fields(cls) if field.name != "others"]
        try:
            for key in known[:6]:        # sizes: a default could only be wrong
                if key not in entries:
                    raise ValueError(f"{key} is missing")
            return cls(**{key: entries.pop(key) for key in known if key in entries},
                       others=entries)
        except ValueError as error:
            raise ValueError(f"{path} does not describe a BERT: {error}; correct that "
                             f"entry, or use other weights") from None

    def to_json(self, path, **more):
        entries = {"pad_token_id": 0, **self.others, "architectures": ["BertModel"],
                   "model_type": "bert", "hidden_act": "gelu",
                   "position_embedding_type": "absolute", **dataclasses.asdict(self)}
        # These describe the files that were read, not those that are written.
        for key in ("others", "dtype", "torch_dtype", "auto_map", "_name_or_path",
                    "multitask", "transformers_version", "id2label", "label2id",
                    "num_labels", "problem_type", "finetuning_task"):
            entries.pop(key, None)
        with open(path, "w", encoding="utf-8", newline="\n") as file:
            json.dump({**entries, **more}, file, indent=2)
            file.write("\n")


# --- 3.1 Dropout ---

def sixteen_bit_dropout(x: torch.Tensor, p: float) -> torch.Tensor:
    """F.dropout(x, p) with a cheaper mask: x / (1 - p) with probability 1 - p, else 0.

    x any shape -> the same. Raises ValueError for p of 1. Why: on CPUs one random number
    for each entry of the mask takes a tenth of a training step. One 64-bit number gives
    four of 16 bits, so p is rounded to a multiple of 1/65536: 0.1 to 0.100006.
    """
    if p == 0:
        return x
    dropped = round(p * 65536)
    if dropped > 65535:
        raise ValueError(f"dropout must be below 1, got {p}: nothing would be left")
    if x.device.type != "cpu":
        return F.dropout(x, p)
    bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-2 ** 63, None)
    bits = bits.view(torch.int16)[:x.numel()].view(x.shape)     # each -32768 … 32767
    # out: the comparison writes 0 and 1 as x's own type, which saves a slow copy from bool.
    keep = torch.ge(bits, dropped - 32768, out=torch.empty(x.shape, dtype=x.dtype))
    return x * keep.mul_(65536 / (65536 - dropped))


class Dropout(nn.Dropout):
    """nn.Dropout, computed by sixteen_bit_dropout()."""

    def forward(self, x):
        return sixteen_bit_dropout(x, self.p) if self.training else x


# --- 3.1 Multi-head attention ---

def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
              attention_mask: torch.Tensor | None = None, dropout=0.0) -> torch.Tensor:
    """Every token takes a weighted mean of all values.   [Vaswani et al. 2017, eq. 1]

        softmax(Q Kᵀ / √D + mask) V

    query, key, value [B, A, T, D]; attention_mask [B, T], 1 for tokens, 0 for padding, or
    None if nothing is padded; dropout: P(an attention weight is dropped). Returns
    [B, A, T, D]. Raises ValueError for a mask of another shape. By hand, for one head with
    D = 1: q = k = (0, ln 2), v = (0, 1). Token 2 scores 0 and (ln 2)² = 0.480, so it takes
    e^.480 / (1 + e^.480) = 0.618 of the second value.
    """
    B, A, T, D = query.shape
    if attention_mask is not None and attention_mask.shape != (B, T):
        raise ValueError(f"attention_mask must be [{B}, {T}] for a query of "
                         f"{list(query.shape)}, got {list(attention_mask.shape)}")
    if query.is_cuda:
        # On CPUs the lines below are as fast or faster, at the lengths of these data sets.
        return fused_attention(query, key, value, attention_mask, dropout)

    # Why √D: the dot product of two vectors of D unit-variance numbers has variance D, and
    # softmax of large scores is nearly one-hot: gradient ≈ 0.
    scores = query @ key.transpose(-1, -2) / math.sqrt(D)           # [B, A, T, T]
    if attention_mask is not None:
        # Trap: hide padded KEYS (the last dimension), before the softmax. Hiding queries
        # instead leaves every real token looking at padding. -1e4 makes e^score exactly 0
        # in float32 and still fits float16, which ends at 65504.
        hidden = 1.0 - attention_mask.to(scores.dtype)              # [B, T]
        scores = scores + hidden[:, None, None, :] * -1e4
    weights = sixteen_bit_dropout(scores.softmax(-1), dropout)
    return weights @ value                                          # [B, A, T, D]


def fused_attention(query, key, value, attention_mask=None, dropout=0.0):
    """attention() as one kernel, which never writes the T × T scores to memory.

    Each row needs a token that can be seen: [CLS] always can. Else it gives 0.
    """
    visible = None if attention_mask is None else attention_mask.bool()[:, None, None, :]
    # Not cuDNN's kernel, which torch prefers on new GPUs: it is compiled for each length.
    kernels = nn.attention.SDPBackend
    with nn.attention.sdpa_kernel([kernels.FLASH_ATTENTION, kernels.EFFICIENT_ATTENTION,
                                   kernels.MATH]):
        return F.scaled_dot_product_attention(query, key, value, visible, dropout)


# --- 3.1 One layer ---

class BertLayer(nn.Module):
    """Attention mixes tokens, then a two-layer network works on each token by itself.

        x = LN(x + Dropout(W_o Attention(x)))
        x = LN(x + Dropout(W_2 GELU(W_1 x)))            [Devlin et al. 2018; post-LN]

    x [B, T, H] -> [B, T, H]. Post-LN: the layer norm follows the sum, as in the original
    transformer. Putting it before the sub-layer, as newer models do, gives a different
    function, for which BERT's weights are useless.
    """

    def __init__(self, config):
        super().__init__()
        H = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.attention_dropout = config.attention_probs_dropout_prob
        self.query, self.key, self.value = nn.Linear(H, H), nn.Linear(H, H), nn.Linear(H, H)
        self.attention_dense = nn.Linear(H, H)
        # Trap: torch's own default eps is 1e-5. On features as small as 1e-3 that shrinks
        # the output by more than half; BERT was trained with 1e-12.
        self.attention_norm = nn.LayerNorm(H, eps=config.layer_norm_eps)
        self.intermediate = nn.Linear(H, config.intermediate_size)
        self.output = nn.Linear(config.intermediate_size, H)
        self.output_norm = nn.LayerNorm(H, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def split_heads(self, x):
        """[B, T, H] -> [B, A, T, D]: head a reads features a·D to (a+1)·D.

        Trap: view, then transpose. A view straight to [B, A, T, D] has the right shape too,
        but mixes features of different tokens in one head.
        """
        B, T, H = x.shape
        return x.view(B, T, self.num_heads, H // self.num_heads).transpose(1, 2)

    def forward(self, x, attention_mask=None):
        mixed = attention(self.split_heads(self.query(x)), self.split_heads(self.key(x)),
                          self.split_heads(self.value(x)), attention_mask,
                          self.attention_dropout if self.training else 0.0)
        mixed = mixed.transpose(1, 2).reshape(x.shape)              # [B, T, H]
        x = self.attention_norm(x + self.dropout(self.attention_dense(mixed)))
        # The exact GELU, x·Φ(x). Its tanh form is off by up to 4.7e-4, at |x| = 2.7.
        wide = F.gelu(self.intermediate(x))                         # [B, T, intermediate]
        return self.output_norm(x + self.dropout(self.output(wide)))


# --- 3.1 The encoder ---

class BertModel(nn.Module):
    """Embedding, num_hidden_layers layers, pooler.   [report 3.1; Devlin et al. 2018]

    Bidirectional: no mask hides the words that follow, so every token sees the whole text.
    pooler is None where the weights have none and none was asked for.
    """

    def __init__(self, config):
        super().__init__()
        H = config.hidden_size
        self.config = config
        self.word_embeddings = nn.Embedding(config.vocab_size, H)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, H)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, H)
        self.embedding_norm = nn.LayerNorm(H, eps=config.layer_norm_eps)
        self.layers = nn.ModuleList(BertLayer(config)
                                    for _ in range(config.num_hidden_layers))
        self.pooler = nn.Linear(H, H)
        self.dropout = Dropout(config.hidden_dropout_prob)
        initialize(self, config.initializer_range)

    def embed(self, input_ids: torch.Tensor,
              token_type_ids: torch.Tensor | None = None) -> torch.Tensor:
        """LN(word + position + segment), then dropout.

        input_ids [B, T] -> x [B, T, H]. token_type_ids [B, T] is 0 for the first sentence
        and 1 for the second; None means 0 throughout. Raises ValueError for a sequence
        longer than the position table, and for token_type_ids if type_vocab_size is 1.
        Why positions: attention by itself cannot tell one word order from another.
        """
        T = input_ids.size(1)
        if T > self.config.max_position_embeddings:
            raise ValueError(f"needed at most {self.config.max_position_embeddings} tokens "
                             f"(max_position_embeddings), got {T}; truncate the text")
        if token_type_ids is not None and self.config.type_vocab_size == 1:
            raise ValueError("needed weights with two segments to encode a pair as one "
                             "sequence, got type_vocab_size 1; train without --con")
        if token_type_ids is None:
            segments = self.token_type_embeddings.weight[0]             # [H]
        else:
            segments = self.token_type_embeddings(token_type_ids)       # [B, T, H]
        x = self.word_embeddings(input_ids) + self.position_embeddings.weight[:T] + segments
        return self.dropout(self.embedding_norm(x))

    def encode(self, x, attention_mask=None):
        """All layers, then tanh(W h_[CLS] + b), the pooler.

        x [B, T, H], attention_mask [B, T] or None -> hidden states [B, T, H], pooled [B, H]
        (None without a pooler). Why [CLS]: it comes first in every text and means nothing
        by itself, so its last hidden state is free to become a summary.
        """
        for layer in self.layers:
            x = layer(x, attention_mask)
        return x, None if self.pooler is None else torch.tanh(self.pooler(x[:, 0]))

    def forward(self, input_ids, attention_mask=None, token_type_ids=None):
        """ids [B, T] -> {"last_hidden_state" [B, T, H], "pooler_output" [B, H]}."""
        hidden_states, pooled = self.encode(self.embed(input_ids, token_type_ids),
                                            attention_mask)
        return {"last_hidden_state": hidden_states, "pooler_output": pooled}

    # --- 4.1 Pre-trained weights ---

    @classmethod
    def from_pretrained(cls, folder, dropout: float | None = None, pooler=True):
        """Read config.json and the weights beside it (plumbing/checkpoint.py).

        Returns a BertModel in float32 and in eval mode (.train() turns dropout on); dropout
        replaces config.json's probabilities. Heads that are not ours (masked-LM, …) are
        ignored. Weights without a pooler get a random one and a warning, or none if pooler
        is False. Raises FileNotFoundError, or ValueError naming what is not a BERT, or the
        missing or misshapen tensor.
        """
        config_path = os.path.join(folder, "config.json")
        if not os.path.exists(config_path):
            raise FileNotFoundError(f"needed a model folder with config.json, vocab.txt "
                                    f"and model.safetensors; {checkpoint.missing(folder)}")
        config = BertConfig.from_json(config_path)
        if dropout is not None:
            config = dataclasses.replace(config, hidden_dropout_prob=dropout,
                                         attention_probs_dropout_prob=dropout)
        # On the meta device tensors have shapes but no memory: a config.json that claims a
        # gigantic model is refused below, and nothing is initialised only to be replaced.
        with torch.device("meta"), checkpoint.NoInitialValues():
            model = cls(config)
        names = {name: checkpoint_name(name) for name in model.state_dict()}
        tensors = checkpoint.read(folder, {names[name]: list(p.shape) for name, p
                                           in model.state_dict().items()}, "pooler.")
        if "pooler.dense.weight" not in tensors:
            model.pooler = nn.Linear(config.hidden_size, config.hidden_size)
            initialize(model.pooler, config.initializer_range)
            if pooler:
                warnings.warn(f"{folder} has weights without a pooler, as masked-LM models "
                              f"do: it starts at random (--pool mean needs none)")
            else:
                model.pooler = None
        model.load_state_dict({name: tensors[key] for name, key in names.items()
                               if key in tensors}, strict=False, assign=True)
        return model.eval()

    def save_pretrained(self, folder, tensors=None, half=False, **entries):
        """Write config.json and model.safetensors, which any BERT library can load.

        tensors {name: tensor} and entries of config.json are written too: other libraries
        ignore them; MultitaskBert keeps its heads there. half: the encoder in float16.
        """
        os.makedirs(folder, exist_ok=True)
        self.config.to_json(os.path.join(folder, "config.json"), **entries)
        encoder = {checkpoint_name(name): p.half() if half else p
                   for name, p in self.state_dict().items()}
        safetensors.save(os.path.join(folder, "model.safetensors"),
                         {**encoder, **(tensors or {})})


def initialize(module, std):
    """Linear and embedding weights ~ N(0, std²), biases 0: for what no checkpoint holds."""
    for part in module.modules():
        if isinstance(part, (nn.Linear, nn.Embedding)):
            nn.init.normal_(part.weight, std=std)
        if isinstance(part, nn.Linear):
            nn.init.zeros_(part.bias)


# Our module -> its name in Hugging Face checkpoints.
CHECKPOINT_MODULES = {
    "word_embeddings": "embeddings.word_embeddings",
    "position_embeddings": "embeddings.position_embeddings",
    "token_type_embeddings": "embeddings.token_type_embeddings",
    "embedding_norm": "embeddings.LayerNorm",
    "pooler": "pooler.dense",
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention_dense": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "intermediate": "intermediate.dense",
    "output": "output.dense",
    "output_norm": "output.LayerNorm",
}


def checkpoint_name(name):
    """layers.3.query.weight -> encoder.layer.3.attention.self.query.weight"""
    *layer, module, kind = name.split(".")
    layer = f"encoder.layer.{layer[1]}." if layer else ""
    return f"{layer}{CHECKPOINT_MODULES[module]}.{kind}"
