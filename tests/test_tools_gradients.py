"""tools/gradients.py: which task gradients conflict, and what is chance."""

import math
import re

import numpy as np

import multitask
from tests.checks import assert_close, assert_equal, assert_raises
from tests.world import analyzed, gram_of, log_of
from tools import gradients, page


def steps_of(lines, tasks):
    return gradients.read_steps("metrics.jsonl", list(enumerate(lines, 1)), tasks)


def logged():
    """Steps of a run with everything that can be logged."""
    return steps_of(log_of(analyzed()), ["sst", "para", "sts"])


def tables_of(parts):
    return [part for part in parts if isinstance(part, page.Table)]


def words_of(parts):
    return " ".join(part.text for part in parts if isinstance(part, page.Paragraph))


def step_line(cosine, layer_cosine, tasks=("a_b", "c"), step=1):
    """A line of metrics.jsonl with two tasks."""
    a, b = tasks
    line = {"step": step, "epoch": 1, "acted": .5, f"cos_{a}_{b}": cosine,
            f"treated_cos_{a}_{b}": .5, f"acted_{a}_{b}": 1.0, f"acted_{b}_{a}": 0.0,
            "layers": {"layer 1": {f"cos_{a}_{b}": layer_cosine}}}
    for name in tasks:
        line.update({f"norm_{name}": 1.0, f"coefficient_{name}": 2.0})
    return line


def test_tools_gradients__chance_by_hand():
    mean = gradients.chance([.3, .1, -.1, .1])
    assert_close([mean.mean, mean.sd, mean.conflict, mean.size],
                 [.1, math.sqrt(.12) / 4, .25, .15], 1e-12)
    assert_close(mean.z, 1.154701, 1e-6)
    assert_equal(gradients.chance([0, 0]).z, 0)
    assert_close(gradients.dimensions([.1, -.1]), 100, 1e-9)


def test_tools_gradients__random_vectors_have_the_cosines_that_it_says():
    # In d dimensions: mean cos² = 1 / d, mean |cos| = √(2 / πd), half of them below 0.
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 4000, 200))
    cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert_close(gradients.dimensions(cosines), 200, 15)
    mean = gradients.chance(cosines)
    assert_close(mean.size, math.sqrt(2 / math.pi / 200), .003)
    assert abs(mean.z) < gradients.STRONG and abs(mean.conflict - .5) < .03


def test_tools_gradients__without_any_relation_chance_colors_as_many_cells_as_it_says():
    rng, colored, ranges = np.random.default_rng(1), [], []
    parts = np.array_split(np.arange(480), 24)
    for _ in range(40):
        # One cosine a step, in three blocks that share its batches.
        shared = rng.normal(size=480)
        cosines = np.stack([shared + .5 * rng.normal(size=480) for _ in range(3)])
        colored.append(sum(abs(gradients.chance(row[part]).z) >= gradients.WEAK
                           for row in cosines for part in parts))
        ranges.append(np.percentile(gradients.colored_by_chance(
            {("a", "b"): cosines}, parts), [2.5, 97.5]))
    inside = np.mean([low <= count <= high
                      for count, (low, high) in zip(colored, ranges)])
    assert inside >= .85, f"{inside}: it says 95%"
    assert_close(np.mean(colored), .0455 * 72, 1.2)


def test_tools_gradients__a_planted_conflict_is_seen_where_and_when_it_is():
    # Two tasks, 320 steps: chance, but a conflict in layer 2 in the second half.
    rng, lines = np.random.default_rng(0), []
    for step in range(1, 321):
        line = step_line(rng.normal(0, .05), 0, ("a", "b"), step)
        line["layers"] = {"layer 1": {"cos_a_b": rng.normal(0, .05)},
                          "layer 2": {"cos_a_b": rng.normal(-.1 * (step > 160), .05)}}
        lines.append(line)
    parts = gradients.gradients(steps_of(lines, ["a", "b"]))
    strip, = next(part for part in parts if isinstance(part, page.Figure)).panels
    looks = {}
    for cell in strip.svg().split('<rect class="cell ')[1:]:
        row, steps = cell.split("<title>")[1].split(":")[0].split(", steps ")
        looks.setdefault(row, []).append((int(steps.split(" to ")[0]),
                                          cell.split('"')[0]))
    late = [look for step, look in looks["layer 2"][:-1] if step > 160]
    early = [look for step, look in looks["layer 2"][:-1] if step <= 160]
    assert_equal((len(late), set(late)), (10, {"minus"}))
    assert_equal(looks["layer 2"][-1][1], "minus", "the whole run")
    assert "minus" not in [*early, *(look for _, look in looks["layer 1"])]
    assert "no pair conflicts or agrees" in parts[1].text
    count, number, low, high = map(int, re.search(
        r"In this run (\d+) of (\d+) cells are colored; chance alone colors (\d+) to (\d+)",
        parts[1].text).groups())
    assert low < high < count < number == 60


def test_tools_gradients__what_was_logged_is_averaged():
    parts = gradients.gradients(logged(), {"embeddings": 1000, "layer 1": 500,
                                           "layer 2": 500, "pooler": 100})
    whole, blocks, changed, cost = tables_of(parts)
    lines = [line for line in log_of(analyzed()) if "cos_sst_para" in line]

    def mean(name):
        return np.mean([line[name] for line in lines])
    assert_close(float(whole.rows[1][1].strip("*")), mean("cos_sst_sts"), 6e-4)
    assert_equal(changed.header, ["a, b", "before", "after", "a got b's", "b got a's",
                                  "φᵀ of a", "φᵀ of b"])
    row = changed.rows[2]
    assert_equal(row[0], "para, sts")
    assert_close([float(row[1]), float(row[2])],
                 [mean("cos_para_sts"), mean("treated_cos_para_sts")], 6e-4)
    assert_equal(row[3:5], [f"{100 * mean('acted_para_sts'):.0f}%",
                            f"{100 * mean('acted_sts_para'):.0f}%"])
    assert_close([float(row[5]), float(row[6])], [lines[-1]["target_para_sts"],
                                                  lines[-1]["target_sts_para"]], 6e-4)
    of_block = {row[0]: row[1:] for row in blocks.rows}
    want = np.mean([line["layers"]["layer 2"]["cos_sst_para"] for line in lines])
    assert_close(float(of_block["layer 2"][1].strip("*")), want, 6e-4)
    assert_equal(of_block["embeddings"][0], "1,000")
    # P counts what a gradient reaches; three gradients instead of one are 8 bytes more.
    P = sum(int(row[0].replace(",", "")) for row in of_block.values())
    assert f"P = {P:,} parameters" in words_of(parts)
    assert_equal([row[0] for row in cost.rows], ["sst", "para", "sts"])
    assert_close(float(cost.rows[0][2]), mean("coefficient_sst"), 6e-3)


def test_tools_gradients__the_update_beside_the_plain_sum_by_hand():
    # g1 = (1, 0), g2 = (-1, 1): PCGrad's coefficients are 2 and 1½, the update (½, 1½).
    # Its length is √2.5, that of the sum (0, 1) is 1; their cosine 1.5 / √2.5. With g1 the
    # sum has a cosine of 0 and the update one of .5 / √2.5; with g2 √½ and 1 / √5.
    gram = gram_of([[1, 0], [-1, 1]])
    weights = multitask.pcgrad(gram, orders=[[1], [0]]).sum(0)
    assert_close(weights, [2, 1.5])
    length, cosine, before, after = gradients.turned(gram[None], weights[None])
    assert_close([length[0], cosine[0]], [2.5 ** .5, 1.5 / 2.5 ** .5], 1e-9)
    assert_close(before[0], [0, .5 ** .5], 1e-9)
    assert_close(after[0], [.5 / 2.5 ** .5, 5 ** -.5], 1e-9)
    for value in gradients.turned(np.zeros((1, 2, 2)), np.ones((1, 2))):
        assert_equal(value.any(), False, "0 and not NaN where a gradient is zero")


def test_tools_gradients__the_logs_norms_and_cosines_are_the_gram_matrix():
    line = {"step": 1, "epoch": 1, "cos_a_b": -.5 ** .5, "norm_a": 1, "norm_b": 2 ** .5,
            "coefficient_a": 1.5, "coefficient_b": 1}
    assert_close(steps_of([line], ["a", "b"]).grams()[0], [[1, -1], [-1, 2]], 1e-9)


def test_tools_gradients__a_method_of_weights_shows_what_it_has():
    # No "acted" and no cosines after treatment: it weighs gradients and changes none.
    line = {"step": 1, "epoch": 1, "cos_a_b": -.5, **{
        f"{kind}_{task}": 2.0 for kind in ("norm", "coefficient") for task in "ab"}}
    parts = gradients.gradients(steps_of([line], ["a", "b"]))
    assert "only weighs" in words_of(parts)
    whole, cost = tables_of(parts)
    assert_equal(whole.rows, [["a, b", "-0.500", "±1.000", "100%", "0.500", "4"]])
    # Equal weights: the update is twice the sum, and turned by nothing.
    assert "2.00 times as long" in words_of(parts) and "of 1.000 with it" in words_of(parts)
    assert_equal([row[-1] for row in cost.rows], ["+0.000", "+0.000"])


def test_tools_gradients__without_task_gradients_there_is_no_section():
    steps = steps_of([{"step": 1, "loss_sst": 1}], ["sst", "para", "sts"])
    assert_equal(gradients.gradients(steps), [])
    assert_equal(gradients.gradients(steps_of([], ["sst"])), [], "one task")


def test_tools_gradients__names_of_tasks_may_hold_underscores():
    # Cosines -1, .5, .25, -.25 and .5: two of five conflict.
    lines = [step_line(cosine, layer) for cosine, layer in
             ((-1, .5), (.5, -1), (.25, .5), (-.25, .5), (.5, .5))]
    whole, blocks, changed, cost = tables_of(gradients.gradients(
        steps_of(lines, ["a_b", "c"])))
    assert_equal(whole.rows[0][:4:3], ["a_b, c", "40%"])
    assert_equal(blocks.rows, [["layer 1", "+0.200"]])
    assert_equal(changed.rows, [["a_b, c", "+0.000", "+0.500", "100%", "0%"]])


def test_tools_gradients__a_damaged_log_is_named_by_line():
    good = step_line(.5, .5)
    missing = {name: value for name, value in good.items() if name != "norm_c"}
    no_layers = {name: value for name, value in good.items() if name != "layers"}
    for bad, words in (
            (missing, ["norm_c"]), ({**good, "acted": "yes"}, ["acted", "a number", "yes"]),
            ({**good, "epoch": None}, ["epoch", "null"]), (no_layers, ["layers"]),
            ({**good, "layers": {"layer 1": 3}}, ["layer 1", "3"])):
        with assert_raises("metrics.jsonl, line 2: needed", *words):
            steps_of([good, bad], ["a_b", "c"])
