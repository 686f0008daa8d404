"""The parameters and the task gradients as vectors, AdamW, and the learning rate's course.

    3.1    AdamW: the optimizer, in the form of the course; FusedAdamW: faster
    3.3    FlatParameters: θ, the task gradients G, their inner products
    4.3    learning_rate_factor(): warm-up and linear decay

Symbols: P parameters in all, K task gradients held side by side.
    θ   theta [P]     all parameters of the model
    G   G [K, P]      row k is the gradient of task k's loss

The papers do algebra on vectors: g_i · g_j, θ_t, ‖g‖. Here it is literally that: every
parameter of the model is a view of one vector θ, and during the backward pass of task k
every parameter's .grad is a view of row k of G. Autograd then adds up the gradient where it
is needed: nothing is copied, flattened or stacked, and gradient accumulation is merely
"don't zero yet".
"""

import math

import torch
from torch import nn
from torch.optim.adamw import adamw


# --- 3.1 AdamW ---

class AdamW(torch.optim.Optimizer):
    """Adam with decoupled weight decay.   [report 3.1; Loshchilov & Hutter 2019, Alg. 2]

        m = β₁ m + (1 - β₁) g          v = β₂ v + (1 - β₂) g²
        θ ← θ - lr · √(1 - β₂ᵗ) / (1 - β₁ᵗ) · m / (√v + eps)
        θ ← θ - lr · weight_decay · θ

    A torch.optim.Optimizer for any parameters; lr in units of θ per step. Raises ValueError
    for settings out of range. By hand: θ = 1, g = 1, lr = weight_decay = 0.1. The first
    step is lr · sign(g), to 0.9; the decay takes 1% of that, to 0.891.

    torch.optim.AdamW decays before the step (0.89), and divides by √v / √(1 - β₂ᵗ) + eps,
    so that its eps weighs 1 / √(1 - β₂ᵗ) = 32 times less in the first step than ours.
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
                # Trap: skip on None, never fill in zeros. A head that is not used in this
                # step would else drift on by its momentum, and decay.
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["step"] = 0
                    state["m"] = torch.zeros_like(p)
                    state["v"] = torch.zeros_like(p)
                state["step"] += 1
                self.update(p, p.grad, state["m"], state["v"], state["step"], group)
                # Decoupled: multiplied by lr but not by the adaptive step (adding decay · θ
                # to g would divide it by √v), and after the step, on the new θ.
                # Trap: not p.mul_(1 - lr · decay). In float32 1 - 1e-7 is 1 - 1.2e-7, a
                # decay that is 20% too strong.
                if group["weight_decay"]:
                    p.add_(p, alpha=-group["lr"] * group["weight_decay"])
        return loss

    def update(self, p, g, m, v, t, group):
        """The equation's first two lines, in place; t counts this parameter's steps."""
        beta1, beta2 = group["betas"]
        m.mul_(beta1).add_(g, alpha=1 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        # m and v start at 0, so at first they are too small by 1 - βᵗ. Correcting the
        # scalar step size instead of m and v saves two passes over P numbers.
        size = group["lr"]
        if group["correct_bias"]:
            size *= math.sqrt(1 - beta2 ** t) / (1 - beta1 ** t)
        p.addcdiv_(m, v.sqrt().add_(group["eps"]), value=-size)


class FusedAdamW(AdamW):
    """AdamW whose update is one kernel of torch's: the same function and state, faster.

    One pass over θ, g, m and v instead of six: a quarter of the time, no temporary
    copy. torch divides by √v / √(1 - β₂ᵗ) + eps. Given eps / √(1 - β₂ᵗ) it is the
    equation above to rounding, numerator and denominator over √(1 - β₂ᵗ).
    """

    def update(self, p, g, m, v, t, group):
        beta1, beta2 = group["betas"]
        eps = group["eps"]
        if group["correct_bias"]:
            eps /= math.sqrt(1 - beta2 ** t)
        else:
            t = math.inf        # β^∞ = 0: nothing left to correct
        # The kernel's caller counts the step before it takes it, hence t - 1.
        step = torch.tensor(t - 1.0, dtype=torch.float32, device=p.device)
        adamw(  # weight_decay is 0 here: torch would decay before the step
            [p], [g], [m], [v], [], [step], fused=True, amsgrad=False, beta1=beta1,
            beta2=beta2, lr=group["lr"], weight_decay=0.0, eps=eps, maximize=False)


# --- 3.3 θ and the task gradients as vectors ---

class FlatParameters:
    """θ [P], of which every parameter becomes a view, and G [K, P].   [report 3.3.1, 3.3.2]

    blocks: {block name: [(parameter name, nn.Parameter), …]}, in the order of θ. Within a
    block the matrices come first, then biases and gains, so that "no weight decay on those"
    is a slice too. rows is K. Raises ValueError if parameters differ in dtype or device.
    Trap: make it after model.to(device); a later move would silently break the views, and
    every update would go to a θ that no layer reads. check_views() finds that.
    """

    CHUNK = 1 << 18         # numbers of a row handled at once: 3 rows of them fit a cache

    def __init__(self, blocks, rows):
        # A stable sort: False (two dimensions or more) comes before True.
        blocks = {block: sorted(named, key=lambda item: item[1].dim() < 2)
                  for block, named in blocks.items()}
        named = [item for block in blocks.values() for item in block]
        kinds = {(p.dtype, p.device) for _, p in named}
        if len(kinds) != 1:
            raise ValueError(f"parameters must share one dtype and device, got {kinds}")
        P = sum(p.numel() for _, p in named)
        self.theta = torch.empty(P, dtype=named[0][1].dtype, device=named[0][1].device)
        self.G = torch.zeros(rows, P, dtype=self.theta.dtype, device=self.theta.device)
        self.parameters = dict(named)
        self.place = {}         # parameter name -> slice of θ
        self.blocks = {}        # block name -> slice of θ
        self.matrices = {}      # block name -> names of its parameters
        self.groups = []        # (slice, decays?, nn.Parameter aliasing that slice)
        start = 0
        for block, named in blocks.items():
            first = start
            for name, p in named:
                here = slice(start, start + p.numel())
                self.theta[here] = p.detach().reshape(-1)
                p.data = self.theta[here].view(p.shape)
                self.place[name] = here
                start = here.stop
            self.blocks[block] = slice(first, start)
            self.matrices[block] = [name for name, _ in named]
            middle = first + sum(p.numel() for _, p in named if p.dim() >= 2)
            for here, decays in ((slice(first, middle), True),
                                 (slice(middle, start), False)):
                if here.start < here.stop:
                    self.groups.append((here, decays, nn.Parameter(self.theta[here])))

    def param_groups(self, weight_decay=0.0):
        """What AdamW gets: a few long parameters instead of 200 short ones."""
        return [{"params": [p for _, decays, p in self.groups if decays],
                 "weight_decay": weight_decay},
                {"params": [p for _, decays, p in self.groups if not decays],
                 "weight_decay": 0.0}]

    def views(self, vector):
        """A vector [P] as {parameter name: tensor of its shape}; no copy."""
        return {name: vector[here].view(self.parameters[name].shape)
                for name, here in self.place.items()}

    def check_views(self):
        """Raise RuntimeError if some parameter no longer lies in θ."""
        for name, view in self.views(self.theta).items():
            if self.parameters[name].data_ptr() != view.data_ptr():
                raise RuntimeError(f"{name} was moved out of θ "
                                   f"after FlatParameters was made")

    def attach(self, row):
        """Let the next backward pass add to G[row]: point each .grad at its place there."""
        for name, view in self.views(self.G[row]).items():
            if self.parameters[name].requires_grad:
                self.parameters[name].grad = view

    def gram(self, slices, rows=slice(None)):
        """All inner products of G's rows, on each of `slices`.   -> float64 numpy [L, k, k]

            gram[l, i, j] = g_i · g_j  over slice l

        rows: a slice of k of the K rows. Why float64, in pieces: a float32 sum over 20
        million products is off by up to 2e-3; short float32 sums added up in float64 are
        right to 1e-6 and take as long. One copy to the host for all of them.
        """
        k = len(self.G[rows])
        sums = torch.zeros(len(slices), k, k, dtype=torch.float64, device=self.G.device)
        for l, here in enumerate(slices):
            n = (here.stop - here.start) // self.CHUNK
            middle = here.start + n * self.CHUNK
            whole = self.G[rows, here.start:middle].view(k, n, self.CHUNK).transpose(0, 1)
            rest = self.G[rows, middle:here.stop]                   # [k, < CHUNK]
            # One batched product [n, k, CHUNK], whose n pieces all cores share.
            sums[l] = torch.bmm(whole, whole.mT).double().sum(0) + (rest @ rest.T).double()
        return sums.cpu().numpy()

    def combine(self, coefficients, slices, rows=slice(None)):
        """G[0] ← Σ_k coefficients[l, k] G[k], slice l: the update's gradient, in place.

        rows: as in gram(), and the k rows that coefficients [L, k] belong to.
        """
        for (c, *others), here in zip(torch.as_tensor(coefficients).tolist(), slices):
            for start in range(here.start, here.stop, self.CHUNK):
                piece = slice(start, min(start + self.CHUNK, here.stop))
                out, (first, *more) = self.G[0, piece], self.G[rows, piece]
                torch.mul(first, c, out=out)                # first may be G[0] itself
                for c_k, g in zip(others, more):
                    out.add_(g, alpha=c_k)

    def give_gradients(self, used):
        """Hand G[0] to the optimizer, block by block; a block outside `used` gets None."""
        for here, _, p in self.groups:
            inside = any(u.start <= here.start and here.stop <= u.stop for u in used)
            p.grad = self.G[0, here] if inside else None


# --- 4.3 Learning rate ---

def learning_rate_factor(step, total, warmup):
    """By how much to multiply the learning rate in update `step` (0, 1, …) of `total`.

    warmup is a fraction of total. 0 keeps the rate constant, as the report does; otherwise
    it rises linearly over the warm-up and falls linearly to 0 at the end, as in BERT's own
    fine-tuning [Devlin et al. 2018, app. A.3]. With total 10 and warmup 0.2:
    .5  1  1  .875  .75  .625  .5  .375  .25  .125
    """
    if warmup == 0:
        return 1.0
    rise = max(1, round(warmup * total))
    if step < rise:
        return (step + 1) / rise
    return (total - step) / max(1, total - rise)
