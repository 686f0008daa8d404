"""SMART: two terms that keep fine-tuning smooth.

    3.5    symmetric_kl(), binary_symmetric_kl(), squared_difference(): ℓ_s by output type
    3.5    smoothness(): R_s(θ), step 1, "Smoothness-Inducing Adversarial Regularization"
    3.5    Teacher, bregman(): D_Breg(θ, θ̃), step 2
    3.5    objective(): 𝓛 + λ_s R_s + μ D_Breg; with --r-drop, not the report's, R-Drop
    3.5    gradient_ratio(): how much a term weighs beside the loss

Symbols: x [R, T, H] embeddings of R rows of T tokens (R = B, or 2B for pairs encoded apart)
with H features, f the network from x to logits [B, C], x̃ = x + δ, ε the radius of δ, η the
size of an ascent step, λ_s and μ the weights of the two terms.

D7: The report takes θ_t itself as the reference of D_Breg. But at θ = θ_t the divergence is
smallest: it is 0, and so is its gradient. With one gradient step for each t, which is how
everyone trains, that step is computed exactly at θ_t, and the term does nothing at all. The
source offers the remedy: a reference that lags behind, θ̃ = an average of past θ (its
"momentum" form).
D6: The report calls 𝓛 "the loss function after gradient treatment". Gradients are treated,
losses are not: the terms are added to each task's own loss, and the treatment sees the sum.
Leaves out: p-norms other than ∞, and the variant that normalises δ to length 1.
"""

import copy
import dataclasses

import torch

# --- 3.5 ℓ_s: how far two predictions lie apart ---

def check_pair(a, b):
    # Trap: [B] against [B, 1] would broadcast to [B, B] and compare all with all.
    if a.shape != b.shape:
        raise ValueError(f"needed logits of one shape, got {list(a.shape)} and "
                         f"{list(b.shape)}")


def symmetric_kl(a, b):
    """KL(P‖Q) + KL(Q‖P) = Σ (P - Q) (log P - log Q), batch mean.   [Jiang et al., 2.1]

    Logits a, b [B, C] -> scalar >= 0. By hand: P = (¾, ¼), Q = (½, ½):
    ¼ ln(3/2) - ¼ ln(1/2) = ¼ ln 3 = 0.2747.
    """
    check_pair(a, b)
    log_p, log_q = a.log_softmax(-1), b.log_softmax(-1)             # [B, C]
    return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(-1).mean()


def binary_symmetric_kl(a, b):
    """symmetric_kl, two classes: (σ(a) - σ(b)) (a - b), mean.   [B], [B] -> scalar"""
    check_pair(a, b)
    return ((a.sigmoid() - b.sigmoid()) * (a - b)).mean()


def squared_difference(a, b):
    """(a - b)², mean over the batch, for regression.   [B], [B] -> scalar

    Trap: a softmax here would be over one output, constant 1, and the term always 0.
    """
    check_pair(a, b)
    return (a - b).square().mean()


# --- 3.5 First step: smoothness-inducing adversarial regularization ---

@dataclasses.dataclass(frozen=True)
class Settings:
    """SMART's settings.   [report 3.5; Jiang et al. 2019, sec. 4.1]

    weight is λ_s, eps ε, steps the number of ascent steps, bregman_weight μ, r_drop α of
    R-Drop; a weight of 0 turns its term off. Why these values: the paper's ε = 1e-5 is too
    small to change a prediction (R_s ≈ 1e-10), so these were chosen on dev.
    """
    weight: float = 1.0
    eps: float = 0.02
    steps: int = 1
    bregman_weight: float = 0.1
    r_drop: float = 0.0


def random_state(device):
    """The state of the generator that draws dropout on this device."""
    if device.type == "cpu":
        return torch.get_rng_state()
    return torch.get_device_module(device).get_rng_state(device)    # torch.cuda, torch.mps


def set_random_state(state, device):
    """Set the generator back to what random_state(device) returned."""
    if device.type == "cpu":
        torch.set_rng_state(state)
    else:
        torch.get_device_module(device).set_rng_state(state, device)


def smoothness(f, x, divergence, eps, steps=1, attention_mask=None, noise=None):
    """R_s: how much the worst small change of x changes the prediction.   [report 3.5;
    Jiang et al. 2019, eq. 1 and Algorithm 1, lines 5 to 7]

        R_s(θ) = 1/n Σ_i  max  ℓ_s(f(x̃_i; θ), f(x_i; θ))   over  ‖x̃_i - x_i‖_∞ <= ε

        δ ~ N(0, ε²);   steps times:  g = ∂ℓ_s/∂δ,  δ ← clamp(δ + η g / ‖g‖_∞, -ε, ε)

    x [R, T, H] with its graph; f: x -> logits, drawing dropout as it likes; attention_mask
    [R, T] or None; noise [R, T, H]: δ's start (ε included), by default random.
    Returns (f(x), R_s), so that the clean pass is not paid for twice. η is 100 ε, the ratio
    of the paper's 1e-3 to its ε = 1e-5: after one step nearly every coordinate of δ is
    clamped to ±ε.
    """
    # Why noise: ℓ_s is smallest, 0, at δ = 0, so its gradient there is exactly 0. It is
    # drawn before the state is saved, or every pass would reuse its numbers for dropout.
    if noise is None:
        noise = eps * torch.randn_like(x)
    real = 1.0 if attention_mask is None else attention_mask[:, :, None].to(x.dtype)
    delta = noise.detach() * real                                   # [R, T, H]

    # Trap: under two dropout masks R_s is far from 0 even at ε = 0, and measures the
    # dropout. All passes start from one state of the generator, so they share one mask.
    state = random_state(x.device)
    clean = f(x)
    for _ in range(steps):
        set_random_state(state, x.device)
        delta.requires_grad_(True)
        # detach: only ∂/∂δ is wanted here, so no weight gets a gradient. The
        # clean side is a constant: x̃ moves, x does not.
        change = divergence(f(x.detach() + delta), clean.detach())
        (g,) = torch.autograd.grad(change, delta)
        # ‖g‖_∞ is taken for each row alone: a row is one x_i (each sentence of a pair that
        # is encoded apart is its own), and its step must not depend on its batch-mates.
        # The tiny floor only guards against 0 / 0.
        largest = g.abs().amax((1, 2), keepdim=True).clamp_min(torch.finfo(g.dtype).tiny)
        delta = (delta.detach() + 100 * eps * g / largest).clamp(-eps, eps) * real
    set_random_state(state, x.device)
    # Not detached on either side, since θ moves both. For f(x) = θ x, R_s = (θ δ)² has the
    # gradient 2 θ δ²; with f(x) held constant it would be 2 θ δ (x + δ), of the order of δ.
    return clean, divergence(f(x + delta), clean)


# --- 3.5 Second step: Bregman proximal point ---

class Teacher:
    """A copy of the model at θ̃, the moving average of θ.   [Jiang et al. 2019, sec. 2.2]

        θ̃ ← β θ̃ + (1 - β) θ      after every update

    model: any module; flat: its optim.FlatParameters, whose θ it follows. theta [P] is θ̃.
    With β = 0.99 and θ = 1, 2, 3 after a start at 0: θ̃ = .01, .0299, .059601.
    """

    def __init__(self, model, flat):
        self.model = copy.deepcopy(model).requires_grad_(False)
        # Trap: clone. A reference that shares memory with θ is θ, and the term is 0 (D7).
        self.theta = flat.theta.clone()
        views = flat.views(self.theta)
        for name, p in self.model.named_parameters():
            p.data, p.grad = views[name], None

    def follow(self, theta, beta):
        self.theta.lerp_(theta, 1 - beta)


def momentum_beta(step: int, total: int) -> float:
    """β: .99 in the first tenth of updates, then .999.   [Jiang et al. 2019, sec. 4.1]"""
    return 0.99 if step < total // 10 else 0.999


def bregman(logits, teacher_logits, divergence):
    """D_Breg = 1/n Σ_i ℓ_s(f(x_i; θ), f(x_i; θ̃)).   [report 3.5; Jiang et al., eq. 3]

    logits and teacher_logits [B] or [B, C]. No gradient flows into the teacher's.
    """
    return divergence(logits, teacher_logits.detach())


# --- 3.5 Both steps together ---

def objective(model, task, batch, settings, teacher=None, scale=1.0,
              randn_like=torch.randn_like):
    """𝓕(θ) + μ D_Breg(θ, θ̃), with 𝓕 = 𝓛 + λ_s R_s.   [report 3.5]

    The report's θ_{t+1} is where this sum is smallest; here each update is one step of
    AdamW towards it. model: embed(batch) -> x, and logits(task, x, batch); task: loss and
    divergence; settings: a Settings; scale: of optim.LossScale, by which only ∂ℓ_s/∂δ is
    multiplied; randn_like draws the noise. A term whose weight is 0, or that has no
    teacher, costs nothing.
    With settings.r_drop the batch is passed twice, with different dropout:

        ½ (𝓛₁ + 𝓛₂) + α ℓ_s(f₁, f₂) in place of 𝓛            [Liang et al. 2021, R-Drop]

    For classes α = 1 is 4 in the paper, which adds the two losses and halves ℓ_s.
    Returns (the sum, the terms without their weights: {"loss", "smooth", "bregman",
    "r_drop"}).
    """
    use_teacher = teacher is not None and settings.bregman_weight > 0
    device, parts = batch.input_ids.device, {}
    embed_state = random_state(device)
    x = model.embed(batch)                                          # [R, T, H]
    noise = settings.eps * randn_like(x) if settings.weight else None
    encode_state = random_state(device)
    if settings.weight:
        # ∂ℓ_s/∂δ is tiny, and float16 would turn it into 0: hence scale · ℓ_s. Its length
        # does not matter, as smoothness() divides it by ‖g‖_∞.
        logits, scaled = smoothness(
            lambda x: model.logits(task, x, batch), x,
            lambda a, b: scale * task.divergence(a, b), settings.eps, settings.steps,
            batch.attention_mask, noise)
        parts["smooth"] = scaled / scale
    else:
        logits = model.logits(task, x, batch)
    total = parts["loss"] = task.loss(logits, batch.labels)
    if settings.r_drop:
        # The generator has moved on since the first pass, so this one has other masks.
        again = model.logits(task, model.embed(batch), batch)
        parts["loss"] = (total + task.loss(again, batch.labels)) / 2
        parts["r_drop"] = task.divergence(logits, again)
        total = parts["loss"] + settings.r_drop * parts["r_drop"]
    if settings.weight:
        total = total + settings.weight * parts["smooth"]
    if use_teacher:
        # Trap: the teacher shares the student's dropout masks. With other masks, or none,
        # D_Breg is not 0 at θ̃ = θ: with dropout .1 it was .006 to .017 before the first
        # step, nearly all noise. With the same masks value and gradient are exactly 0.
        end_state = random_state(device)
        if teacher.model.training != model.training:
            teacher.model.train(model.training)
        with torch.no_grad():
            set_random_state(embed_state, device)
            teacher_x = teacher.model.embed(batch)
            set_random_state(encode_state, device)
            teacher_logits = teacher.model.logits(task, teacher_x, batch)
        set_random_state(end_state, device)
        parts["bregman"] = bregman(logits, teacher_logits, task.divergence)
        total = total + settings.bregman_weight * parts["bregman"]
    return total, parts


def gradient_ratio(term, loss, parameters):
    """‖∇ term‖ / ‖∇ loss‖: does a term do anything? Near 0 it doesn't.   -> scalar

    For the log, now and then: two more backward passes, which leave .grad alone.
    """
    parameters = [p for p in parameters if p.requires_grad]

    def squared_norm(scalar):
        gradients = torch.autograd.grad(scalar, parameters, retain_graph=True,
                                        allow_unused=True)
        return sum(g.square().sum() for g in gradients if g is not None)
    return (squared_norm(term) / squared_norm(loss)).sqrt()
