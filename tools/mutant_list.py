"""Typical mistakes, and edits that no test can notice: what tools/mutants.py tries."""

from tools import (
    mutants_encoder,
    mutants_folder,
    mutants_runs,
    mutants_smart,
    mutants_tools,
    mutants_updates,
    mutants_weights,
)

# Part of the assignment, or line of the ladder: (function or module, old, new, mistake,
# words that the failing test must say). old and new may be several pieces, in two tuples.
MUTANTS = {
    **mutants_encoder.MUTANTS,
    **mutants_updates.MUTANTS,
    **mutants_smart.MUTANTS,
    **mutants_weights.MUTANTS,
    **mutants_runs.MUTANTS,
    **mutants_folder.MUTANTS,
    **mutants_tools.MUTANTS,
}

# What no test can notice, because it is the same function; and why.
EQUIVALENT = {
    "3.1 attention": [
        ("bert.attention", "* -1e4", "* -1e9", "e^-1e4 is 0 already")],
    "3.1 layer": [
        ("bert.BertLayer.split_heads",
         "x.view(B, T, self.num_heads, H // self.num_heads).transpose(1, 2)",
         "torch.stack(x.split(H // self.num_heads, -1), 1)",
         "the same numbers in the same places")],
    "3.1 heads and losses": [
        ("heads.cross_entropy", "F.cross_entropy(logits",
         "F.cross_entropy(logits.log_softmax(-1)",
         "a log-softmax of a log-softmax is itself")],
    "3.3.1 PCGrad": [
        ("multitask.pcgrad", " & (squared_norm > 0)", "",
         "the dot product with a zero gradient is 0, never below")],
    "3.3.2 Gradient Vaccine": [
        ("multitask.GradVac.__call__", "phi < target", "phi <= target",
         "at φ = φᵀ the tilt is 0"),
        ("multitask.GradVac.__call__", "C[..., i, j] += w", "C[..., i, j] = w",
         "each j is visited once, so it stood at 0")],
    "3.5 smoothness": [
        ("smart.symmetric_kl", "((log_p.exp() - log_q.exp()) * (log_p - log_q))",
         "((log_q.exp() - log_p.exp()) * (log_q - log_p))", "it is symmetric")],
    "3.5 objective": [
        ("smart.objective", "        set_random_state(end_state, device)\n", "",
         "the teacher has drawn as many numbers as the model")],
}
