"""Make typical mistakes in copies of our source, and see that the tests notice each one.

    python tools/mutants.py                 all of them, in two or three minutes
    python tools/mutants.py WORD …          those whose part or mistake contains a WORD

A mutant is a small edit of one function. It counts as killed if a test of its own part
fails and that test's name or message contains the words that point to the mistake: a check
that merely says "wrong" teaches nobody. At the end stand the edits that no test can notice,
with the reason; they are tried too, and must pass.

An edit names its function and a piece of its source, so that it breaks loudly, with
"fragment not found", when the source has changed: write the same mistake into the new code.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time

import torch

from make_assignment import COPIED, ROOT, in_child, original

# Part of the assignment, or line of the ladder: (function, old, new, mistake, words that
# the failing test must say). old and new may be several pieces, in two tuples.
MUTANTS = {
    "3.1 attention": [
        ("bert.attention", " / math.sqrt(D)", "", "no √D", "√D is missing"),
        ("bert.attention", "/ math.sqrt(D)", "/ D", "D for √D", "by D instead of √D"),
        ("bert.attention", "scores.softmax(-1)", "scores.softmax(-2)",
         "softmax over the queries", "runs over the queries"),
        ("bert.attention", "hidden[:, None, None, :]", "hidden[:, None, :, None]",
         "padded queries hidden, not keys", "queries (rows) instead of the keys"),
        ("bert.attention", "* -1e4", "* 1e4", "sign of the mask", "wrong sign"),
        ("bert.attention", "1.0 - attention_mask.to", "attention_mask.to",
         "mask not turned round", "wrong sign"),
        ("bert.attention", "* -1e4", "* 0", "mask unused", "no effect"),
        ("bert.attention",
         ("scores = scores + hidden[:, None, None, :] * -1e4", "(scores.softmax(-1), "),
         ("pass", "(scores.softmax(-1) * (1 if attention_mask is None else "
                  "attention_mask[:, None, None, :]), "),
         "mask multiplied in after the softmax", "after the softmax"),
        ("bert.attention",
         ("sixteen_bit_dropout(scores.softmax(-1), dropout)",
          "weights @ value"),
         ("scores.softmax(-1)", "sixteen_bit_dropout(weights @ value, dropout)"),
         "dropout on the output", "weights, not outputs"),
        ("bert.attention", "scores.softmax(-1), dropout)", "scores.softmax(-1), 0)",
         "no dropout",
         "dropout falls on the weights"),
        ("bert.attention", "attention_mask.shape != (B, T)", "False",
         "misshapen mask not refused", "misshapen mask is refused")],
    "3.1 layer": [
        ("bert.BertLayer.split_heads",
         "x.view(B, T, self.num_heads, H // self.num_heads).transpose(1, 2)",
         "x.view(B, self.num_heads, T, H // self.num_heads)",
         "view straight to [B, A, T, D]", "without a transpose"),
        ("bert.BertLayer.forward", "mixed.transpose(1, 2).reshape", "mixed.reshape",
         "heads joined without a transpose", "joined without a transpose"),
        ("bert.BertLayer.forward", "x + self.dropout(self.attention_dense",
         "self.dropout(self.attention_dense", "no residual around attention",
         "not added to attention's output"),
        ("bert.BertLayer.forward", "x + self.dropout(self.output(wide))",
         "self.dropout(self.output(wide))", "no residual around the second network",
         "not added to the second network's output"),
        ("bert.BertLayer.forward", "F.gelu(self", "F.relu(self", "ReLU for GELU",
         "place of GELU"),
        ("bert.BertLayer.forward", "F.gelu(self.intermediate(x))",
         'F.gelu(self.intermediate(x), approximate="tanh")', "GELU's tanh form",
         "tanh form"),
        ("bert.BertLayer.forward", "x = self.attention_norm(x + self.dropout("
         "self.attention_dense(mixed)))",
         "x = x + self.dropout(self.attention_dense(mixed))", "first norm left out",
         "first norm is missing"),
        ("bert.BertLayer.forward", "self.output_norm(x +", "(x +", "last norm left out",
         "last norm is missing"),
        ("bert.BertLayer.forward", "self.split_heads(self.key(x))",
         "self.split_heads(self.query(x))", "keys made by W_q", "each by its own matrix"),
        ("bert.BertLayer.forward", "x + self.dropout(self.attention_dense(mixed))",
         "x + self.attention_dense(mixed)", "no dropout on attention's output",
         "dropout falls on what is added"),
        ("bert.BertLayer.forward", "self.attention_dropout if self.training else 0.0",
         "self.attention_dropout", "attention's dropout on in eval mode", "off in eval"),
        ("bert.BertLayer.forward", "self.split_heads(self.value(x)), attention_mask,",
         "self.split_heads(self.value(x)), None,", "mask not passed on", "not passed on")],
    "3.1 embedding": [
        ("bert.BertModel.embed", " + self.position_embeddings.weight[:T]", "",
         "no positions", "positions are missing"),
        ("bert.BertModel.embed", "weight[:T]", "weight[1:T + 1]", "positions from 1",
         "count from 1"),
        ("bert.BertModel.embed", "weight[:T]", "weight[:1]", "one position for all",
         "every token has position 0"),
        ("bert.BertModel.embed", " + segments", "", "no segments", "segments"),
        ("bert.BertModel.embed", "self.token_type_embeddings(token_type_ids)",
         "self.token_type_embeddings.weight[0]", "token_type_ids ignored",
         "all tokens are in segment 0"),
        ("bert.BertModel.embed", "self.embedding_norm(x)", "x", "no layer norm",
         "layer norm is missing"),
        ("bert.BertModel.embed", "self.dropout(self.embedding_norm(x))",
         "self.embedding_norm(self.dropout(x))", "dropout before the norm",
         "after the layer norm"),
        ("bert.BertModel.embed", "self.dropout(self.embedding_norm(x))",
         "self.embedding_norm(x)", "no dropout", "is there dropout"),
        ("bert.BertModel.embed", "if T > self", "if False and T > self",
         "too long a text not refused", "too long a text"),
        ("bert.BertModel.encode", "torch.tanh(self.pooler(x[:, 0]))",
         "self.pooler(x[:, 0])", "no tanh", "tanh is missing"),
        ("bert.BertModel.encode", "x[:, 0]", "x[:, -1]", "last token pooled",
         "last token was pooled"),
        ("bert.BertModel.encode", "x[:, 0]", "x.mean(1)", "mean pooled",
         "mean over all tokens"),
        ("bert.BertModel.encode", "layer(x, attention_mask)", "layer(x)",
         "mask not given to the layers", "no attention_mask"),
        ("bert.BertModel.encode", "in self.layers:", "in self.layers[:1]:",
         "one layer only", "only one layer ran"),
        ("bert.BertModel.__init__", "nn.LayerNorm(H, eps=config.layer_norm_eps)",
         "nn.LayerNorm(H)", "torch's own eps of 1e-5", "layer_norm_eps")],
    "3.1 AdamW": [
        ("optim.AdamW.update", 'if group["correct_bias"]:', "if False:",
         "no bias correction", "no bias correction"),
        ("optim.AdamW.update", 'if group["correct_bias"]:', "if True:",
         "bias always corrected", "not obeyed"),
        ("optim.AdamW.update", "math.sqrt(1 - beta2 ** t) / (1 - beta1 ** t)",
         "1 / (1 - beta1 ** t)", "only m corrected", "only m's bias"),
        ("optim.AdamW.update", "math.sqrt(1 - beta2 ** t) / (1 - beta1 ** t)",
         "math.sqrt(1 - beta2 ** t)", "only v corrected", "only v's bias"),
        ("optim.AdamW.update", "math.sqrt(1 - beta2 ** t) / (1 - beta1 ** t)",
         "math.sqrt(1 - beta1 ** t) / (1 - beta2 ** t)", "β exchanged in the correction",
         "exchanged in the bias correction"),
        ("optim.AdamW.update", 'beta1, beta2 = group["betas"]',
         'beta2, beta1 = group["betas"]', "β exchanged", "β₁ and β₂ are exchanged"),
        ("optim.AdamW.step", 'state["step"] += 1', 'state["step"] = 1', "t stays at 1",
         "t stays at 1"),
        ("optim.AdamW.step", "if not state:", "if True:", "state made anew in every step",
         "anew in every step"),
        ("optim.AdamW.update", 'v.sqrt().add_(group["eps"])', 'v.add(group["eps"]).sqrt()',
         "eps inside the root", "inside the root"),
        ("optim.AdamW.update", 'v.sqrt().add_(group["eps"])',
         '(v / (1 - beta2 ** t)).sqrt().add_(group["eps"]).mul_(math.sqrt(1 - beta2 ** t))',
         "torch's place for eps", "as torch does"),
        ("optim.AdamW.step", 'alpha=-group["lr"] * group["weight_decay"]',
         'alpha=-group["lr"] * math.sqrt(1 - group["betas"][1] ** state["step"]) / '
         '(1 - group["betas"][0] ** state["step"]) * group["weight_decay"]',
         "decay times the adaptive step",
         "step size instead of lr"),
        ("optim.AdamW.step", 'alpha=-group["lr"] * group["weight_decay"]',
         'alpha=-group["weight_decay"]', "decay not multiplied by lr",
         "not multiplied by lr"),
        ("optim.AdamW.step", 'if group["weight_decay"]:', "if False:", "no weight decay",
         "no weight decay"),
        ("optim.AdamW.step", ('state["step"] += 1', 'if group["weight_decay"]:'),
         ('state["step"] += 1; p.mul_(1 - group["lr"] * group["weight_decay"])',
          "if False:"), "decay before the step", "before the step"),
        ("optim.AdamW.step", ('state["step"] += 1', 'if group["weight_decay"]:'),
         ('state["step"] += 1; p.grad = p.grad + group["weight_decay"] * p', "if False:"),
         "L2: decay in the gradient", "L2 instead of decoupled"),
        ("optim.AdamW.update", "alpha=1 - beta1", "alpha=1", "m without 1 - β₁",
         "lacks the factor 1 - β₁"),
        ("optim.AdamW.update", "v.mul_(beta2).addcmul_(g, g, value=1 - beta2)",
         "v.mul_(beta2).add_(g.abs(), alpha=1 - beta2)", "v from |g|", "mean of |g|"),
        ("optim.AdamW.update", "value=-size", "value=size", "up the gradient",
         "up the gradient"),
        ("optim.AdamW.step", "if p.grad is None:\n                    continue",
         "if p.grad is None:\n                    p.grad = torch.zeros_like(p)",
         "None taken for zero", "without gradient must be left alone"),
        ("optim.AdamW.step", "return loss", "return None", "closure's loss lost",
         "closure"),
        ("optim.AdamW.__init__", "lr >= 0)", "True)", "negative lr accepted",
         "out of range")],
    "3.1 heads and losses": [
        ("heads.cross_entropy", "labels.round().long()",
         'labels.round().long(), reduction="sum"', "summed over the batch",
         "summed, not averaged"),
        ("heads.cross_entropy", "F.cross_entropy(logits",
         "F.cross_entropy(logits.softmax(-1)", "softmax twice", "softmax is taken twice"),
        ("heads.cross_entropy", ".round().long()", ".long()", "labels cut off",
         "rounded, not cut off"),
        ("heads.binary_cross_entropy", "_with_logits(logits, labels)",
         "_with_logits(logits.sigmoid(), labels)", "sigmoid twice",
         "sigmoid is taken twice"),
        ("heads.binary_cross_entropy", "F.binary_cross_entropy_with_logits(logits",
         "F.binary_cross_entropy(logits.sigmoid()", "logarithm of a rounded σ",
         "in one step"),
        ("heads.binary_cross_entropy", "labels)\n", "1 - labels)\n", "labels exchanged",
         "labels are exchanged"),
        ("heads.squared_error", "mse_loss", "l1_loss", "absolute error", "not squared"),
        ("heads.squared_error", "labels)\n", "labels.round())\n", "STS labels rounded",
         "label was rounded"),
        ("heads.squared_error", "labels)\n", 'labels, reduction="sum")\n', "summed",
         "summed, not averaged"),
        ("heads.Head.forward", "F.relu(layer(self.dropout(h)))", "layer(self.dropout(h))",
         "no ReLU", "ReLU is missing"),
        ("heads.Head.forward", "logits = last(self.dropout(h))",
         "logits = F.relu(last(self.dropout(h)))", "ReLU on the logits",
         "after the last layer"),
        ("heads.Head.forward", "layer(self.dropout(h))", "layer(h)",
         "hidden layer without dropout", "only the last layer has dropout"),
        ("heads.Head.forward", "last(self.dropout(h))", "last(h)",
         "last layer without dropout", "only the first layer has dropout"),
        ("heads.Head.forward", "return logits.squeeze(-1) if last.out_features == 1 else "
         "logits", "return logits", "[B, 1] instead of [B]", "squeeze"),
        ("heads.MultitaskBert.logits", "torch.cat(pooled.chunk(2), -1)",
         "pooled.reshape(len(pooled) // 2, -1)", "neighbouring rows taken for a pair",
         "neighbouring rows"),
        ("heads.MultitaskBert.logits", "torch.cat(pooled.chunk(2), -1)",
         "torch.cat(pooled.chunk(2)[::-1], -1)", "sentences exchanged",
         "second sentence stands first"),
        ("heads.MultitaskBert.logits", "torch.cat(pooled.chunk(2), -1)",
         "sum(pooled.chunk(2))", "vectors added", "two vectors were added"),
        ("heads.MultitaskBert.logits", "task.pair and not self.con", "task.pair",
         "CON rows cut in two", "with CON every row"),
        ("heads.MultitaskBert.logits", "(hidden_states * mask).sum(1) / mask.sum(1)",
         "hidden_states.mean(1)", "padding in the mean", "above and below the line"),
        ("heads.MultitaskBert.logits", "/ mask.sum(1)", "/ hidden_states.size(1)",
         "mean over the padded length", "counted below the line"),
        ("heads.tasks", "(logits > 0)", "(logits > 0.5)", "threshold ½ on a logit",
         "above ½")],
    "3.2 Algorithms 1 and 2": [
        ("multitask.sequential",
         "for task, number in steps.items() for _ in range(number)]",
         "for k in range(max(steps.values())) for task, number in steps.items() "
         "if k < number]", "tasks take turns", "finishes one before the next"),
        ("multitask.sequential", "(task,)", "task", "names instead of tuples",
         "must be a tuple"),
        ("multitask.round_robin", "steps[aligned]", "max(steps.values())",
         "as long as the largest set", "largest set"),
        ("multitask.round_robin", "tuple(steps)", "tuple(sorted(steps))",
         "order of the tasks lost", "sorted"),
        ("multitask.backward", "(loss / len(micro_batches)).backward()", "loss.backward()",
         "accumulation sums", "summed, not averaged"),
        ("multitask.backward", "flat.G[row].zero_()", "pass", "G not emptied",
         "still in G"),
        ("multitask.backward", "flat.attach(rows[task])",
         "flat.attach(rows[task]); flat.G[rows[task]].zero_()",
         "emptied before every batch", "only the last batch counts"),
        ("multitask.backward", "flat.attach(rows[task])", "flat.attach(0)",
         "one row for all tasks", "added up in one row"),
        ("multitask.backward", "torch.stack(values).mean()", "torch.stack(values).sum()",
         "logged losses summed", "logged losses are summed"),
        ("multitask.treat", "if group is not None:\n            gram[group] += one",
         "if True:\n            gram[group or 0] += one", "heads inside the vectors",
         "heads inside the treated vectors"),
        ("multitask.treat", "C[group].sum(-2)", "C[group].mean(-2)",
         "mean of the treated gradients", "heads stay out"),
        ("multitask.treat", "C[group].sum(-2)", "C[group].sum(-1)", "C transposed",
         "heads stay out"),
        ("multitask.treat", "if clip and norm > clip", "if False", "no clipping",
         "clipping"),
        ("multitask.treat", "if not np.isfinite(squares).all():", "if False:",
         "infinite gradients used", "not finite"),
        ("multitask.treat", "square.sum() > 0", "True", "idle heads get zeros",
         "idle head")],
    "3.3 plan": [
        ("multitask.plan", "(epoch + 1) * batches[task] // accumulate\n                "
         "- epoch * batches[task] // accumulate", "batches[task] // accumulate",
         "left-over batches lost", "left over"),
        ("train.Trainer.where", "step -= len(steps)", "pass", "epochs not counted off",
         "left over")],
    "3.5.1 plan": [
        ("multitask.plan", "in range(para_first)", "in range(0)", "no paraphrase first",
         "paraphrase first")],
    "3.3 FlatParameters": [
        ("optim.FlatParameters.__init__", "item[1].dim() < 2", "item[1].dim() >= 2",
         "biases first", "matrices come first"),
        ("optim.FlatParameters.__init__", "self.theta[here].view(p.shape)",
         "self.theta[here].view(p.shape).clone()", "copies instead of views",
         "view of theta"),
        ("optim.FlatParameters.gram", " + (rest @ rest.T).double()", "", "rest left out",
         "gram in chunks"),
        ("optim.FlatParameters.attach", "self.G[row]", "self.G[0]", "always row 0",
         "fills the row")],
    "3.3 Stream": [
        ("data.Stream.batches_of", "order.permutation(N)[", "order.integers(0, N, N)[",
         "drawn with replacement", "missing"),
        ("data.Stream.batches_of", 'np.argsort(self.lengths[picks], kind="stable")',
         "np.arange(len(picks))", "not sorted by length", "padded tokens"),
        ("data.Stream.batches_of", "generation, 0, this_pass", "0, 0, this_pass",
         "restart repeats the order", "position is all its state")],
    "3.3.1 PCGrad": [
        ("multitask.pcgrad", "norm2 = gram[..., j, j]", "norm2 = gram[..., i, i]",
         "divided by ‖g_i‖²", "‖g_i‖² instead of ‖g_j‖²"),
        ("multitask.pcgrad", "np.where(conflict, norm2, 1)",
         "np.sqrt(np.where(conflict, norm2, 1))", "divided by ‖g_j‖",
         "instead of its square"),
        ("multitask.pcgrad", "/ np.where(conflict, norm2, 1)", "", "not divided",
         "was not divided"),
        ("multitask.pcgrad", "dot < 0", "dot > 0", "condition turned round",
         "nothing was projected"),
        ("multitask.pcgrad", "(dot < 0) & ", "", "projected without conflict",
         "although g_i · g_j > 0"),
        ("multitask.pcgrad", "C[..., i, j] -=", "C[..., i, j] +=", "sign",
         "wrong sign"),
        ("multitask.pcgrad", "(C[..., i, :] * gram[..., :, j]).sum(-1)",
         "gram[..., i, j]", "dot product of the untreated g_i", "not of the running"),
        ("multitask.pcgrad", "(C[..., i, :] * gram[..., :, j]).sum(-1)",
         '(C[..., i, :] * (gram @ C[..., j, :, None])[..., 0]).sum(-1)',
         "on already projected gradients", "ORIGINAL"),
        ("multitask.pcgrad", "draw_orders(K, rng) if orders is None else orders",
         "[[j for j in range(K) if j != i] for i in range(K)]", "orders ignored",
         "orders are not followed"),
        ("multitask.draw_orders", " if j != i]", "]", "a task visits itself",
         "projected on itself"),
        ("multitask.draw_orders", "rng.permutation(K).tolist()", "range(K)",
         "order never drawn", "order never changes"),
        ("multitask.check_gram", "gram.shape[-1] != gram.shape[-2]", "False",
         "gram that is not square", "generator")],
    "3.3.2 Gradient Vaccine": [
        ("multitask.GradVac.__call__",
         "w = target / np.sqrt(1 - target ** 2) * r / np.sqrt(b) - d / b",
         "w = np.sqrt(norm2 / b) * (target - phi ** 2 - phi * np.sqrt(1 - target ** 2))",
         "the report's printed formula", "printed formula"),
        ("multitask.GradVac.__call__", "w = target / np.sqrt(1 - target ** 2) * r",
         "w = 0 * r", "target not used", "that is surgery"),
        ("multitask.GradVac.__call__", "alive & (phi < target)", "alive & (phi < 0)",
         "only on conflict", "on conflict (φ < 0) alone"),
        ("multitask.GradVac.__call__", "np.where(alive, moved,",
         "np.where(alive & (phi < target), moved,", "target follows only when exceeded",
         "φᵀ must follow φ always"),
        ("multitask.GradVac.__call__", "+ self.beta * phi",
         "+ self.beta * dots[..., j] / np.sqrt(norm2 * b)", "φ after the tilt",
         "φ after the tilt"),
        ("multitask.GradVac.__call__",
         "(1 - self.beta) * self.target[..., i, j] + self.beta * phi",
         "self.beta * self.target[..., i, j] + (1 - self.beta) * phi", "β exchanged",
         "β and 1 - β are exchanged"),
        ("multitask.GradVac.__call__",
         "np.clip(self.target[..., i, j], -self.CLAMP, self.CLAMP)",
         "self.target[..., i, j]", "target not clamped", "clamped"),
        ("multitask.GradVac.__call__", "dots += w[..., None] * gram[..., :, j]", "pass",
         "dot products of the untreated g_i", "running g_i'"),
        ("multitask.GradVac.__call__", "np.maximum(0, norm2 + 2 * w * d + w * w * b)",
         "norm2", "norm of the untreated g_i", "running g_i'"),
        ("multitask.GradVac.__call__", "np.where(alive, moved, self.target[..., i, j])",
         "moved", "target moved by a zero gradient", "φᵀ stays"),
        ("multitask.GradVac.__call__", "np.maximum(0, norm2 - d * d / b)",
         "norm2 - d * d / b", "root of a rounded zero", "rounding"),
        ("multitask.GradVac.__init__", "0 <= beta <= 1", "True", "β out of range accepted",
         "[0, 1]")],
    "3.4 CON encoding": [
        ("data.join_pair", "*a[:keep_a], sep,", "*a[:keep_a],", "no [SEP] between",
         "[SEP] between the sentences is missing"),
        ("data.join_pair", "*b[:keep_b], sep]", "*b[:keep_b]]", "no [SEP] at the end",
         "last [SEP] is missing"),
        ("data.join_pair", "[cls, *a", "[*a", "no [CLS]", "[CLS] is missing"),
        ("data.join_pair", "sep, *b", "sep, cls, *b", "a second [CLS]", "second [CLS]"),
        ("data.join_pair", "[0] * (keep_a + 2) + [1] * (keep_b + 1)",
         "[0] * (keep_a + 1) + [1] * (keep_b + 2)", "first [SEP] in segment 1",
         "counted to b"),
        ("data.join_pair", "[1] * (keep_b + 1)", "[1] * keep_b + [0]",
         "last [SEP] in segment 0", "counted to a"),
        ("data.join_pair", "max_length - 3", "max_length - 2", "a special token forgotten",
         "only two special tokens"),
        ("data.truncate_pair", "max(budget // 2,", "max(budget - budget // 2,",
         "tie decided for b", "on a tie a was cut"),
        ("data.truncate_pair", "max(budget // 2, budget - a)", "max(0, budget - a)",
         "only b cut", "only b was cut"),
        ("data.truncate_pair", "max(budget // 2, budget - a)", "budget // 2",
         "a half each", "budget")],
    "3.4 collate": [
        ("data.collate", "[[1] * len(row) for row in rows], 0)",
         "[[1] * len(row) for row in rows], 1)", "padding visible", "attention_mask"),
        ("data.collate", "tokenizer.pad)", "tokenizer.unk)", "padded with [UNK]",
         "padding"),
        ("data.collate", "for k in range(len(examples[0])) for texts in examples]",
         "for texts in examples for k in range(len(examples[0]))]",
         "pairs apart row by row", "two sequences")],
    "3.5 smoothness": [
        ("smart.symmetric_kl", "(log_p.exp() - log_q.exp()) *", "log_p.exp() *",
         "one-sided KL", "not symmetric"),
        ("smart.symmetric_kl", ".sum(-1).mean()", ".mean()", "mean over the classes",
         "half of the sum"),
        ("smart.symmetric_kl", ".sum(-1).mean()", ".sum()", "sum over the batch",
         "summed over the batch"),
        ("smart.binary_symmetric_kl", "(a.sigmoid() - b.sigmoid()) * (a - b)",
         "(a.sigmoid() - b.sigmoid()).square()", "squared difference of probabilities",
         "probabilities was squared"),
        ("smart.squared_difference", ".square()", ".abs()", "absolute difference",
         "not squared"),
        ("smart.check_pair", "a.shape != b.shape", "False", "shapes may broadcast",
         "broadcast"),
        ("smart.smoothness", "+ 100 * eps * g", "- 100 * eps * g", "descent",
         "down the gradient"),
        ("smart.smoothness", ".clamp(-eps, eps)", "", "no clamp", "not clamped"),
        ("smart.smoothness", "in range(steps)", "in range(0)", "no ascent",
         "no ascent"),
        ("smart.smoothness", "in range(steps)", "in range(1)", "steps ignored",
         "whatever `steps` says"),
        ("smart.smoothness", "    set_random_state(state, x.device)\n    # Not",
         "    # Not", "two dropout masks", "different dropout masks"),
        ("smart.smoothness", "divergence(f(x + delta), clean)",
         "divergence(f(x + delta), clean.detach())", "clean side detached",
         "clean side is detached"),
        ("smart.smoothness", "divergence(f(x + delta), clean)",
         "divergence(f(x.detach() + delta), clean)", "penalty on a detached copy",
         "detached copy"),
        ("smart.smoothness", "divergence(f(x + delta), clean)",
         "divergence(f(x + delta).detach(), clean)", "perturbed side detached",
         "perturbed side is detached"),
        ("smart.smoothness", ".clamp(-eps, eps) * real", ".clamp(-eps, eps)",
         "padding perturbed", "padding was perturbed"),
        ("smart.smoothness", "g.abs().amax((1, 2), keepdim=True)", "g.abs().max()",
         "one ‖g‖_∞ for the batch", "over the whole batch"),
        ("smart.smoothness", "eps * torch.randn_like(x)", "torch.zeros_like(x)",
         "start at δ = 0", "started at 0"),
        ("smart.smoothness", "change = divergence(f(x.detach() + delta), clean.detach())",
         "change = divergence(f(x + delta), clean.detach()); change.backward("
         "retain_graph=True); change = divergence(f(x.detach() + delta), clean.detach())",
         "ascent by backward()", "left gradients in .grad")],
    "3.5 Bregman and teacher": [
        ("smart.Teacher.follow", "1 - beta", "beta", "β exchanged",
         "β and 1 - β are exchanged"),
        ("smart.Teacher.__init__", "flat.theta.clone()", "flat.theta",
         "reference shares memory", "shares memory with θ"),
        ("smart.Teacher.__init__", ".eval()", "", "teacher in training mode",
         "training mode"),
        ("smart.Teacher.__init__", ".requires_grad_(False)", "", "teacher trained",
         "would be trained"),
        ("smart.Teacher.__init__", "copy.deepcopy(model)", "model",
         "the model is its own teacher", "the model no longer is"),
        ("smart.Teacher.__init__", "p.data, p.grad = views[name], None", "pass",
         "teacher's parameters are not θ̃", "not what the teacher's model uses"),
        ("smart.bregman", "teacher_logits.detach()", "teacher_logits",
         "gradient to the teacher", "detach them")],
    "3.5 momentum_beta": [
        ("smart.momentum_beta", "total // 10", "total", "β never rises", "after a tenth")],
    "3.5 terms": [
        ("smart.objective", "total + weight * parts", "total + 0 * parts",
         "smoothness left out of the loss", "D6")],
    "4.1 basic_tokens": [
        ("data.basic_tokens", 'unicodedata.category(c) != "Mn"', "True", "accents kept",
         "Été naïve"),
        ("data.basic_tokens", "word.lower()", "word", "not lower-cased", "Hello, World!")],
    "4.1 WordPiece": [
        ("data.WordPiece.pieces", '("##" if start else "")', '""', "no ## on later pieces",
         "##aff"),
        ("data.WordPiece.pieces", "else:\n                return [self.unk]",
         "else:\n                return [*found, self.unk]", "[UNK] for the rest alone",
         "unmatched rest"),
        ("data.WordPiece.pieces", "range(len(token), start, -1)",
         "range(start + 1, len(token) + 1)", "shortest match first", "greedy")],
    "4.1 load": [
        ("data.load", "np.array(labels, np.float32)", "np.array(labels, int)",
         "STS labels whole", "must stay floats"),
        ("data.load", 'delimiter="\\t")', 'delimiter="\\t", quoting=csv.QUOTE_NONE)',
         "quotes not read", "quoted fields"),
        ("data.parse_label", "not low <= value <= high", "False", "labels out of range",
         "bad files")],
    "4.1 safetensors": [
        ("plumbing.safetensors.read_header", "if begin != position:", "if False:",
         "tensors may overlap", "header"),
        ("plumbing.safetensors.read_header", "offsets[1] - offsets[0] != needed", "False",
         "sizes not compared", "header")],
    "4.1 from_pretrained": [
        ("bert.checkpoint_name", "encoder.layer.", "encoder.layers.", "another name",
         "encoder.layer.1"),
        ("bert.read_checkpoint", 'name.removeprefix("bert.")', "name", "prefix kept",
         "old names")],
    "4.2 scores": [
        ("heads.accuracy", "np.mean(", "np.sum(", "a count", "counted, not their share"),
        ("heads.accuracy", "==", "!=", "share of wrong ones", "wrong ones"),
        ("heads.pearson", "x, y = x - x.mean(), y - y.mean()", "pass",
         "means not subtracted", "that is the cosine"),
        ("heads.pearson", "np.sqrt((x * x).sum() * (y * y).sum())",
         "(x * x).sum() * (y * y).sum()", "no root", "root is missing"),
        ("heads.pearson", "(x * y).sum() / spread", "abs((x * y).sum() / spread)",
         "sign lost", "r has a sign"),
        ("heads.pearson", "if not spread > 1e-12 * len(x):", "if False:",
         "0/0 not caught", "undefined"),
        ("heads.overall_score", "(score + 1) / 2 if task.metric is pearson else score",
         "score", "r not moved", "r was not moved"),
        ("heads.overall_score", "/ len(scores)", "/ 3", "always three tasks",
         "by the number of tasks")],
    "4.2 evaluate": [
        ("heads.evaluate", "predictions[indices] = values",
         "predictions[np.sort(indices)] = values", "order of the batches",
         "file's order")],
    "4.2 write_predictions": [
        ("data.write_predictions", "{example} , {value} \\n", "{example},{value}\\n",
         "plain commas", "format")],
    "4.3 learning_rate": [
        ("optim.learning_rate_factor", "(step + 1) / rise", "step / rise",
         "first step with rate 0", "rises and falls")],
    "4.3 parse": [
        ("train.parse", "row.get(name, value)", "value", "Table 1 not read",
         "table 1 row"),
        ("plumbing.flags.number", "low <= value <= high and", "True and",
         "ranges not checked", "out of range")],
    "run_download": [
        ("plumbing.sources.is_right", "return size == expected[0] and",
         "return size == expected[0] or", "digests not compared", "should be")],
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
        ("multitask.pcgrad", " & (norm2 > 0)", "",
         "the dot product with a zero gradient is 0, never below")],
    "3.3.2 Gradient Vaccine": [
        ("multitask.GradVac.__call__", "phi < target", "phi <= target",
         "at φ = φᵀ the tilt is 0"),
        ("multitask.GradVac.__call__", "C[..., i, j] += w", "C[..., i, j] = w",
         "each j is visited once, so it stood at 0")],
    "3.5 smoothness": [
        ("smart.symmetric_kl", "((log_p.exp() - log_q.exp()) * (log_p - log_q))",
         "((log_q.exp() - log_p.exp()) * (log_q - log_p))", "it is symmetric")],
}


def mutated(folder, function, old, new):
    """-> (file, its source with the edit).   Raises ValueError if old is not there"""
    if isinstance(old, str):
        old, new = (old,), (new,)
    file, source, _, node = original(function, folder)
    lines = source.splitlines(keepends=True)
    body = "".join(lines[node.lineno - 1:node.end_lineno])
    for piece, other in zip(old, new):
        if piece not in body:
            raise ValueError(f"fragment not found in {function}: {piece!r}; the source has "
                             f"changed, write the same mistake into the new code")
        body = body.replace(piece, other)
    return file, "".join([*lines[:node.lineno - 1], body, *lines[node.end_lineno:]])


def failures(folder, part):
    """Run a part's tests on a copy.   -> ["claim: message", …] of those that fail"""
    def work(test_all):
        return [f"{r['name'].split('__', 1)[1].replace('_', ' ')}: {r['message']}"
                for r in test_all.ladder([part], limit=20, show=lambda line: None)
                if r["state"] == "FAIL"]
    return in_child(folder, work)


def copy_tree():
    folder = tempfile.mkdtemp(prefix="minbert-mutants-")
    for name in COPIED:
        if os.path.isdir(os.path.join(ROOT, name)):
            shutil.copytree(os.path.join(ROOT, name), os.path.join(folder, name),
                            ignore=shutil.ignore_patterns("__pycache__"))
        elif os.path.exists(os.path.join(ROOT, name)):
            shutil.copyfile(os.path.join(ROOT, name), os.path.join(folder, name))
    return folder


def attempt(folder, part, function, old, new):
    """Mutate, run, put the file back.   -> failures"""
    file, source = mutated(folder, function, old, new)
    with open(os.path.join(folder, file), "w", encoding="utf-8", newline="\n") as target:
        target.write(source)
    try:
        return failures(folder, part)
    finally:
        shutil.copyfile(os.path.join(ROOT, file), os.path.join(folder, file))


def main(argv=None):
    p = argparse.ArgumentParser(description="Try typical mistakes on copies of the source.",
                                usage=argparse.SUPPRESS)
    p.add_argument("words", nargs="*", help="only parts or mistakes that contain one")
    words = p.parse_args(argv).words

    def asked(part, mutant):
        return not words or any(word in text for word in words
                                for text in (part, mutant[0], mutant[3]))
    torch.set_num_threads(1)
    # One step here loads what torch loads lazily, once instead of in every child.
    parameter = torch.nn.Parameter(torch.zeros(1))
    torch.optim.AdamW([parameter]).step()
    start, folder, killed, survivors = time.monotonic(), copy_tree(), 0, 0
    chosen = [(part, mutant) for part, mutants in MUTANTS.items() for mutant in mutants
              if asked(part, mutant)]
    same = [(part, mutant) for part, mutants in EQUIVALENT.items() for mutant in mutants
            if asked(part, mutant)]
    try:
        for part in dict.fromkeys(part for part, _ in chosen + same):
            broken = failures(folder, part)
            if broken:
                raise ValueError(f"{part} fails without any mistake: {broken[0]}")
        for part, (function, old, new, mistake, hint) in chosen:
            failed = attempt(folder, part, function, old, new)
            right = [line for line in failed if hint in line]
            killed += bool(right)
            survivors += not right
            print(f"{'killed' if right else 'UNCLEAR' if failed else 'ALIVE'}  {part}  "
                  f"{function}: {mistake}  <-  "
                  + ((right or failed or ["no test fails"])[0].split(":")[0]
                     if right or not failed else " | ".join(failed)), flush=True)
        for part, (function, old, new, reason) in same:
            failed = attempt(folder, part, function, old, new)
            survivors += bool(failed)
            print(f"{'DIFFERS' if failed else 'same'}  {part}  {function}: {new} for "
                  f"{old}: {failed[0] if failed else reason}", flush=True)
    except ValueError as error:
        p.error(str(error))
    finally:
        shutil.rmtree(folder)
    print(f"{killed} of {len(chosen)} mistakes were noticed, each by a test of its part "
          f"that names it; {len(same)} edits change nothing; "
          f"{time.monotonic() - start:.0f} s")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
