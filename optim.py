"""AdamW, the learning-rate schedule, and all parameters and gradients as vectors.

    3.1    AdamW: the optimizer, in the course's form; FusedAdamW: the same, faster
    3.3    Block, FlatParameters: θ, the task gradients G, their inner products
    4.3    learning_rate_factor(): linear warm-up and decay;  LossScale: for float16

Symbols: P parameters in all, K task gradients held side by side; gram() and combine() take
R slices of θ, and k of the rows.
    θ   theta [P]     all parameters of the model
    G   G [K, P]      row k is the gradient of task k's loss

The papers do algebra on vectors: g_i · g_j, θ_t, ‖g‖. Here it is literally that: every
parameter of the model is a view of one vector θ, and during the backward pass of task k
every parameter's .grad is a view of row k of G. Autograd therefore adds up the gradient
right where it is needed: nothing is copied, flattened or stacked, and gradient
accumulation simply means not zeroing G in between.
"""

import dataclasses
import math

import numpy as np
import torch
from torch import nn
from torch.optim.adamw import adamw

# --- 3.1 AdamW ---

class AdamW(torch.optim.Optimizer):
    """Adam with decoupled weight decay.   [report 3.1; Loshchilov & Hutter 2019; the order
    and the place of eps as in the course's handout]

        m = β₁ m + (1 - β₁) g          v = β₂ v + (1 - β₂) g²
        θ ← θ - lr · √(1 - β₂ᵗ) / (1 - β₁ᵗ) · m / (√v + eps)
        θ ← θ - lr · weight_decay · θ

    A torch.optim.Optimizer for any parameters; lr is about θ's change per step. Without
    correct_bias there is no √(1 - β₂ᵗ) / (1 - β₁ᵗ). Raises ValueError for settings out of
    range. By hand: θ = 1, g = 1, lr = weight_decay = 0.1. The first
    step is lr · sign(g), to 0.9; the decay takes 1% of that, to 0.891.

    torch.optim.AdamW decays before the step (0.89) and divides by √v / √(1 - β₂ᵗ) + eps, so
    in the first step its eps counts 1 / √(1 - β₂) = 32 times less than ours.
    """

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.0,
                 correct_bias=True):
        for name, value, legal in (("lr", lr, lr >= 0), ("eps", eps, eps >= 0),
                                   ("weight_decay", weight_decay, weight_decay >= 0),
                                   ("betas", betas, all(0 <= beta < 1 for beta in betas))):
            if not legal:
                raise ValueError(f"{name} must be "
                                 f"{'in [0, 1)' if name == 'betas' else '>= 0'}, "
                                 f"got {value}")
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps,
                                      weight_decay=weight_decay, correct_bias=correct_bias))

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                # Trap: skip on None; never fill in zeros. A head that is not used in this
                # step would otherwise keep moving on its momentum, and decay.
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["step"] = 0
                    state["m"] = torch.zeros_like(p)
                    state["v"] = torch.zeros_like(p)
                state["step"] += 1
                self.update(p, p.grad, state["m"], state["v"], state["step"], group)
                # Decoupled: scaled by lr but not by the adaptive step (adding decay · θ to
                # g would divide it by √v), and applied after the step, to the new θ.
                # Trap: not p.mul_(1 - lr · decay). In float32, 1 - 1e-7 is 1 - 1.2e-7: the
                # decay would be 20% too strong.
                if group["weight_decay"]:
                    p.add_(p, alpha=-group["lr"] * group["weight_decay"])
        return loss

    def update(self, p, g, m, v, t, group):
        """m, v and θ by the equations' first two lines, in place; step() does the third.

        t, an int, is 1 in p's first step. g is left as it is.
        """
        beta1, beta2 = group["betas"]
        m.mul_(beta1).add_(g, alpha=1 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        # m and v start at 0, so at first they are too small by a factor 1 - βᵗ. Correcting
        # the scalar step size instead of m and v saves two passes over P numbers.
        step_size = group["lr"]
        if group["correct_bias"]:
            step_size *= math.sqrt(1 - beta2 ** t) / (1 - beta1 ** t)
        p.addcdiv_(m, v.sqrt().add_(group["eps"]), value=-step_size)


class FusedAdamW(AdamW):
    """AdamW with torch's fused kernel: the same function and the same state, faster.

    One kernel instead of seven: a quarter of the time and no temporary copies. torch's
    divides by √v / √(1 - β₂ᵗ) + eps. If it gets eps / √(1 - β₂ᵗ) instead of eps, that
    equals our equation up to rounding. On a device for which torch has no such kernel,
    it is AdamW itself. Parameters must be contiguous, as θ is: the kernel does not look at
    strides.
    """

    def update(self, p, g, m, v, t, group):
        beta1, beta2 = group["betas"]
        eps, count = group["eps"], t
        if group["correct_bias"]:
            eps /= math.sqrt(1 - beta2 ** t)
        else:
            count = math.inf    # β^∞ = 0: the kernel has nothing to correct
        # The kernel's caller counts the step before it takes it, hence - 1.
        # full(), not tensor(): a number copied to a GPU would wait for all of its work.
        step = torch.full((), count - 1.0, dtype=torch.float32, device=p.device)
        try:
            adamw(  # weight_decay is 0 here: torch would decay before the step
                [p], [g], [m], [v], [], [step], fused=True, amsgrad=False, beta1=beta1,
                beta2=beta2, lr=group["lr"], weight_decay=0.0, eps=eps, maximize=False)
        except NotImplementedError:
            super().update(p, g, m, v, t, group)


# --- 3.3 θ and the task gradients as vectors ---

@dataclasses.dataclass
class Block:
    """A named part of the model, such as "layer 3", with a slice of θ to itself.

    parameters: {name: nn.Parameter}. shared: do all tasks use it? A head is not shared.
    span: the block's slice of θ, filled in by FlatParameters.
    """
    name: str
    parameters: dict
    shared: bool = True
    span: slice | None = None


@dataclasses.dataclass
class Leaf:
    """One of the few long nn.Parameters that AdamW gets, aliasing a slice of θ."""
    block: str
    span: slice
    decays: bool                # does weight decay apply to it?
    parameter: nn.Parameter


class FlatParameters:
    """θ [P], of which every parameter becomes a view, and G [K, P].   [report 3.3.1, 3.3.2]

    blocks: a list of Block, in the order of θ; rows: how many gradients G holds, K, or 1
    where only their sum is needed. Within a block, matrices come first, then biases and
    gains, so that the part without weight decay is a slice too. Freeze whole blocks only:
    in one that learns, weight decay would reach a frozen matrix too.
    Raises ValueError if parameters differ in dtype or device, or two have the same name.
    Trap: make it after model.to(device). A later move would silently break the views, and
    every update would go to a θ that no layer reads. check_views() notices that.
    """

    CHUNK = 1 << 18         # columns of G handled at once: 3 rows of them fit a cache

    def __init__(self, blocks: list[Block], rows: int):
        named = [item for block in blocks for item in block.parameters.items()]
        kinds = {(p.dtype, p.device) for _, p in named}
        if len(kinds) != 1:
            raise ValueError(f"parameters must share one dtype and device, got {kinds}")
        for names in ([name for name, _ in named], [block.name for block in blocks]):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"needed a name of its own for each block and parameter, "
                                 f"got {twice[0]!r} twice")
        P = sum(p.numel() for _, p in named)
        self.theta = torch.empty(P, dtype=named[0][1].dtype, device=named[0][1].device)
        self.G = torch.zeros(rows, P, dtype=self.theta.dtype, device=self.theta.device)
        self.parameters = dict(named)
        self.blocks = {}        # block name -> Block with its span
        self.place = {}         # parameter name -> slice of θ
        self.leaves = []
        start = 0
        for block in blocks:
            first = start
            for is_matrix in (True, False):
                begin = start
                for name, p in block.parameters.items():
                    if (p.dim() >= 2) == is_matrix:
                        place = self.place[name] = slice(start, start + p.numel())
                        self.theta[place] = p.detach().reshape(-1)
                        p.data = self.theta[place].view(p.shape)
                        start = place.stop
                if begin < start:
                    span = slice(begin, start)
                    self.leaves.append(Leaf(block.name, span, is_matrix,
                                            nn.Parameter(self.theta[span])))
            self.blocks[block.name] = dataclasses.replace(block, span=slice(first, start))
        self.gradients = [self.views(row) for row in self.G]    # what attach() hands out

    def param_groups(self, weight_decay=0.0):
        """What AdamW gets: a few long parameters instead of 200 short ones."""
        return [{"params": [leaf.parameter for leaf in self.leaves if leaf.decays],
                 "weight_decay": weight_decay},
                {"params": [leaf.parameter for leaf in self.leaves if not leaf.decays],
                 "weight_decay": 0.0}]

    def views(self, vector):
        """A vector [P] as {name: tensor of that parameter's shape}; no copy."""
        return {name: vector[place].view(self.parameters[name].shape)
                for name, place in self.place.items()}

    def check_views(self):
        """Raise RuntimeError if some parameter no longer lies in θ."""
        for name, view in self.views(self.theta).items():
            if self.parameters[name].data_ptr() != view.data_ptr():
                raise RuntimeError(f"{name} was moved out of θ "
                                   f"after FlatParameters was made")

    def attach(self, row: int):
        """Let the next backward pass add to G[row]: point each .grad at its place there."""
        for name, view in self.gradients[row].items():
            if self.parameters[name].requires_grad:
                self.parameters[name].grad = view

    def gram(self, spans: list, rows: list):
        """All inner products of some rows of G, on each of `spans`.   -> numpy [R, k, k]

            gram[r, i, j] = g_i · g_j  over the slice spans[r], for the k rows asked for

        In float64. Why in chunks: a float32 sum over 20 million products is off by up to
        2e-3; short float32 sums added up in float64 are right to 1e-6 and take as long.
        Why numpy: a treatment makes a few dozen decisions on K × K numbers. On the host
        they cost nothing; on a GPU each would wait for the queue. So: one copy for all.
        """
        first, last = min(rows), max(rows) + 1
        chosen = np.ix_([row - first for row in rows], [row - first for row in rows])
        k = last - first
        parts = []
        for span in spans:
            n = (span.stop - span.start) // self.CHUNK
            middle = span.start + n * self.CHUNK
            whole = self.G[first:last, span.start:middle].view(k, n, self.CHUNK)
            whole = whole.transpose(0, 1)                           # [n, k, CHUNK]
            rest = self.G[first:last, middle:span.stop]             # [k, < CHUNK]
            # One batched product, whose n chunks all cores share.
            parts += [torch.bmm(whole, whole.mT), (rest @ rest.T)[None]]
        # On the host: Apple's GPUs have no float64.
        sums = torch.cat(parts).cpu().double().split([len(part) for part in parts])
        grams = np.stack([(whole.sum(0) + rest[0]).numpy()[chosen]
                          for whole, rest in zip(sums[::2], sums[1::2])])
        # float32 squares overflow beyond 1e19 and vanish below 1e-23.
        for r, span in enumerate(spans):
            for row, square in zip(rows, np.diagonal(grams[r])):
                in_range = 1e-30 < square < 1e30
                if not in_range and (square != 0 or self.G[row, span].any()):
                    grams[r] = self.exact_gram(span, rows)
                    break
        return grams

    def exact_gram(self, span: slice, rows: list):
        """gram() of one slice with float64 products: slow, and right at every scale."""
        total = torch.zeros(len(rows), len(rows), dtype=torch.float64)
        for start in range(span.start, span.stop, self.CHUNK):
            piece = slice(start, min(start + self.CHUNK, span.stop))
            g = self.G[rows, piece].cpu().double()                  # [k, <= CHUNK]
            total += g @ g.T
        return total.numpy()

    def combine(self, coefficients, spans: list, rows: list):
        """G[0] ← Σ_k coefficients[r, k] G[rows[k]] on spans[r]: the update, in place.

        coefficients [R, k]. rows ascend, so that G[0] is read before it is overwritten.
        """
        for (c, *others), span in zip(torch.as_tensor(coefficients).tolist(), spans):
            # On a GPU each piece would launch some more kernels.
            size = self.CHUNK if self.G.device.type == "cpu" else len(self.theta)
            for start in range(span.start, span.stop, size):
                piece = slice(start, min(start + size, span.stop))
                update = torch.mul(self.G[rows[0], piece], c, out=self.G[0, piece])
                for c_k, row in zip(others, rows[1:]):
                    update.add_(self.G[row, piece], alpha=c_k)

    def give_gradients(self, used):
        """Hand G[0] to the optimizer; a block whose name is not in `used` gets None."""
        for leaf in self.leaves:
            leaf.parameter.grad = self.G[0, leaf.span] if leaf.block in used else None


# --- 4.3 float16 and learning rate ---

class LossScale:
    """The factor s of every loss, which keeps gradients in float16's range.   [Micikevicius
    et al. 2018, sec. 3.2]

        s ← s / 2    after a step whose gradient was not finite, which is skipped
        s ← 2 s      after PATIENCE finite steps in a row

    float16 turns gradients below 3e-8 into 0. value is s, always a power of 2, so that
    scaling rounds nothing; without float16 it is 1, and stays.
    Why not torch's GradScaler: it reads and writes all gradients once more, and only looks
    at what the optimizer gets, when the vaccine's targets have already moved. The Gram
    matrix shows what is not finite, and treat() divides its K × K numbers by s², and the
    coefficients of the update by s: scaling costs no pass over P numbers.
    """

    # LARGEST: twenty skipped steps, which count as divergence, lead from there to s = 1.
    START, LARGEST, PATIENCE = 2.0 ** 16, 2.0 ** 20, 2000

    def __init__(self, float16):
        self.float16, self.value, self.finite_steps = float16, 1.0, 0
        if float16:
            self.value = self.START

    def update(self, skipped):
        """After each step; skipped: was its gradient not finite?"""
        if not self.float16:
            return
        self.finite_steps = 0 if skipped else self.finite_steps + 1
        if skipped:
            self.value /= 2
        elif self.finite_steps == self.PATIENCE:
            self.value, self.finite_steps = min(2 * self.value, self.LARGEST), 0

    def log(self) -> dict:
        return {"loss_scale": self.value} if self.float16 else {}

    def state(self) -> dict | None:
        return ({"value": self.value, "finite_steps": self.finite_steps} if self.float16
                else None)

    def restore(self, state):
        """What state() returned; in another precision the scale starts anew."""
        if self.float16 and state is not None:
            self.value, self.finite_steps = state["value"], state["finite_steps"]


def learning_rate_factor(step: int, total: int, warmup: float) -> float:
    """What the learning rate is multiplied by in update `step` (0, 1, …) of `total`.

    warmup is a share of total. With 0 the learning rate is constant, as in the report;
    otherwise it rises linearly during the warm-up and falls linearly to 0 at the end, as in
    BERT's own fine-tuning [Devlin et al. 2018, app. A.3]. With total 10 and warmup 0.2:
    .5  1  1  .875  .75  .625  .5  .375  .25  .125
    """
    if warmup == 0:
        return 1.0
    rise = max(1, round(warmup * total))
    if step < rise:
        return (step + 1) / rise
    return (total - step) / max(1, total - rise)
