"""4.4 The loop: which model is kept, what a step does in which order, what is logged."""

import contextlib
import json
import os
import unittest.mock

import numpy as np
import torch

import heads
import multitask
import optim
import smart
import train
from plumbing import machine, runs, safetensors
from plumbing.folder import content_digest, load_checkpoint
from tests.checks import assert_close, assert_equal, assert_one_line
from tests.world import log_of, run_train, training_of
from tools import results

SHORT = ("--batch-size", 20, "--epochs", 3)         # 2 updates an epoch, 6 in all


def run(*flags, steps=6):
    """A short run that must end well.   -> (its folder, its result.json)"""
    status, out, errors = run_train(*SHORT, *flags, steps=steps)
    assert_equal(status, 0, errors)
    with open(os.path.join(out, "result.json")) as file:
        return out, json.load(file)


@contextlib.contextmanager
def scored(**scores):
    """Within this, dev scores are these, one by one.   -> θ at each dev evaluation"""
    original, thetas = train.Training.evaluate, []
    number = len(next(iter(scores.values())))

    def evaluate(self, model, split):
        results = original(self, model, split)
        if split == "dev" and len(thetas) < number:
            for name, values in scores.items():
                results[name] = results[name][0], values[len(thetas)]
            thetas.append(self.flat.theta.clone())
        return results
    with unittest.mock.patch.object(train.Training, "evaluate", evaluate):
        yield thetas


@contextlib.contextmanager
def noting(owner, name, note):
    """Within this, note(*args) is called before owner.name(*args)."""
    original = getattr(owner, name)

    def call(*args, **more):
        note(*args)
        return original(*args, **more)
    with unittest.mock.patch.object(owner, name, call):
        yield


# --- Which model is kept ---

def test_4_4_best__the_best_epoch_is_kept_not_the_last():
    with scored(sst=[.2, .9, .5], para=[.5] * 3, sts=[0.0] * 3) as thetas:
        out, result = run()
    assert_equal(result["epoch"], 2, mistakes={
        "the last epoch was kept": 3, "the first epoch was kept": 1})
    assert_equal(result["dev"]["sst"], .9, "result.json has another epoch's scores")
    saved = safetensors.load(os.path.join(out, "best", "model.safetensors"))
    biases = [theta[-1].item() for theta in thetas]         # of the last head
    assert_close(saved["heads.sts.layers.0.bias"], biases[1:2], 0, mistakes={
        "best/ holds the last epoch's model": biases[2:], "best/ holds the first's":
        biases[:1]})


def test_4_4_best__of_equal_epochs_the_first_is_kept():
    with scored(sst=[.5] * 3, para=[.5] * 3, sts=[0.0] * 3):
        assert_equal(run()[1]["epoch"], 1, "a tie must not replace the best model")


def test_4_4_best__only_trained_tasks_select():
    with scored(sst=[.9, .5, .5], para=[.1, .9, .9], sts=[-.5, .9, .9]):
        assert_equal(run("--tasks", "sst")[1]["epoch"], 1, mistakes={
            "scores of untrained tasks select the model too": 2})


def test_4_4_best__r_counts_as_in_the_overall_score():
    # (r + 1) / 2 halves STS's differences: .6 + 0 against .5 + .15 / 2.
    with scored(sst=[.6, .5, .1], para=[.5] * 3, sts=[0.0, .15, 0.0]):
        assert_equal(run()[1]["epoch"], 1, mistakes={
            "r itself was averaged, not (r + 1) / 2": 2})


# --- When dev is evaluated, and when it is enough ---

def evaluations(out):
    return [(line["step"], line["epoch"]) for line in log_of(out) if "dev" in line]


def test_4_4_evaluations__also_within_an_epoch_and_the_best_of_all_is_kept():
    with scored(sst=[.2, .9, .5, .1], para=[.5] * 4, sts=[0.0] * 4) as thetas:
        out, result = run("--eval-every", 3)
    assert_equal(evaluations(out), [(2, 1), (3, 2), (4, 2), (6, 3)], mistakes={
        "--eval-every is ignored, or counted from each epoch's start":
            [(2, 1), (4, 2), (6, 3)],
        "an epoch's end has no evaluation": [(3, 2), (6, 3)],
        "a later epoch's end has no evaluation": [(2, 1), (3, 2), (5, 3)]})
    assert_equal((result["step"], result["epoch"]), (3, 2), "update 3, in epoch 2")
    status, _, errors = run_train(*SHORT, "--eval-every", 6, steps=9)
    assert_one_line(status, errors, "--eval-every 6", "6 updates")
    saved = safetensors.load(os.path.join(out, "best", "model.safetensors"))
    assert_close(saved["heads.sts.layers.0.bias"], [thetas[1][-1].item()], 0,
                 "best/ is not the model of update 3")


def test_4_4_evaluations__training_does_not_notice_them():
    flags = ("--smart", "--option", "gvac", "--dropout", .1)
    steps = [[line for line in log_of(run(*flags, *more)[0]) if "lr" in line]
             for more in ((), ("--eval-every", 1))]
    assert_equal(*steps, "an evaluation changes what is trained after it")


def test_4_4_evaluations__the_run_stops_when_patience_is_over():
    # Dev: better, worse, better, worse, worse; 2 in a row come after the fifth.
    with scored(sst=[.2, .1, .5, .5, .4, .9], para=[.5] * 6, sts=[0.0] * 6):
        out, result = run("--epochs", 6, "--patience", 2, steps=12)
    assert_equal([step for step, _ in evaluations(out)], [2, 4, 6, 8, 10], mistakes={
        "--patience is ignored, or a tie counts as better": [2, 4, 6, 8, 10, 12],
        "all evaluations without a better score are counted, not those in a row":
            [2, 4, 6, 8], "it stops one evaluation early": [2, 4]})
    assert_equal((result["stopped"], result["epoch"]), ("--patience 2", 3))
    assert os.path.exists(os.path.join(out, "predictions", "sts-test-output.csv"))
    for flags, stopped in ((["--patience", 1, "--epochs", 9], "--max-steps 6"),
                           (["--max-steps", 50], "--epochs 3")):
        with scored(sst=[.2, .3, .5], para=[.5] * 3, sts=[0.0] * 3):
            assert_equal(run(*flags)[1]["stopped"], stopped)


def test_4_4_evaluations__with_eval_every_patience_counts_evaluations():
    with scored(sst=[.5, .4, .3, .9], para=[.5] * 4, sts=[0.0] * 4):
        out, result = run("--eval-every", 1, "--patience", 2)
    assert_equal((evaluations(out), result["stopped"]),
                 ([(1, 1), (2, 1), (3, 2)], "--patience 2"))


def test_4_4_evaluations__paraphrase_first_does_not_try_patience():
    # Epochs 1 to 3 are paraphrase's: 4 and 5 are the first that count.
    with scored(sst=[.5] * 6, para=[.5] * 6, sts=[0.0] * 6):
        out, _ = run("--para-first", 3, "--patience", 2, steps=12)
    assert_equal([epoch for _, epoch in evaluations(out)], [1, 2, 3, 4, 5], mistakes={
        "epochs on paraphrase alone count": [1, 2, 3]})


def test_4_4_predictions__are_those_of_the_best_model():
    with scored(sst=[.2, .9, .5], para=[.5] * 3, sts=[0.0] * 3):
        out, _ = run("--dropout", 0)
    training, _ = training_of()
    want = {}
    for name, model in (("best", heads.MultitaskBert.from_pretrained(
            os.path.join(out, "best"))), ("last", training.model)):
        if name == "last":
            state = load_checkpoint(os.path.join(out, "last.pt"))
            training.flat.theta.copy_(state["theta"])
        want[name], _ = training.evaluate(model, "dev")["sts"]
    found = results.read_predictions(os.path.join(out, "predictions", "sts-dev-output.csv"))
    assert_close(list(found.values()), want["best"], 1e-5, mistakes={
        "the predictions are those of the last model, not of best/": want["last"]})


# --- The order of things in a step ---

def events_of(*flags):
    """What a run of 6 updates does to θ and θ̃.   -> [(name, its number), …]"""
    events = []

    def adamw(*_):                      # once for each of its parameters
        if events[-1] != "AdamW":
            events.append("AdamW")
    with noting(optim.FusedAdamW, "update", adamw), \
            noting(smart.Teacher, "follow", lambda *_: events.append("teacher")), \
            noting(multitask, "treat", lambda *_: events.append("treat")), \
            noting(multitask, "backward", lambda *_: events.append("backward")):
        run(*flags)
    return events


def test_4_4_step__gradient_treatment_AdamW_teacher_in_this_order():
    step = ["backward", "treat", "AdamW", "teacher"]
    assert_equal(events_of("--smart", "--option", "pcgrad")[:8], step * 2, mistakes={
        "the teacher follows before AdamW": ["backward", "treat", "teacher", "AdamW"] * 2,
        "the teacher never follows": ["backward", "treat", "AdamW"] * 2 +
                                     ["backward", "treat"],
        "AdamW takes no step": ["backward", "treat", "teacher"] * 2 +
                               ["backward", "treat"]})


def test_4_4_step__the_teacher_follows_by_the_schedules_beta():
    betas = []
    with noting(smart.Teacher, "follow", lambda self, theta, beta: betas.append(beta)):
        run("--smart", "--epochs", 10, steps=20)
    assert_equal(betas, [.99] * 2 + [.999] * 18, "β is momentum_beta(step, total)")


def test_4_4_step__accumulated_batches_are_new_ones():
    seen = []
    with noting(multitask, "backward", lambda flat, batches, *_: seen.append(batches)):
        run("--batch-size", 4, "--accumulate", 3, "--dropout", 0, steps=2)
    for batches in seen:
        assert_equal(len(batches), 3, "--accumulate 3 takes three batches for an update")
        texts = {str(batch["sts"].input_ids.tolist()) for batch in batches}
        assert_equal(len(texts), 3, "accumulation repeats one batch")


def test_4_4_step__the_lr_used_and_logged_is_this_steps():
    used = []
    with noting(multitask, "backward", lambda *_, **more: used.append([])), \
            noting(optim.FusedAdamW, "update", lambda *args: used[-1].append(
                args[-1]["lr"])):
        out, _ = run("--warmup", .5)
    want = [.01 * optim.learning_rate_factor(step, 6, .5) for step in range(6)]
    late = [.01 * optim.learning_rate_factor(step, 6, .5) for step in range(1, 7)]
    logged = [line["lr"] for line in log_of(out) if "lr" in line]
    assert_close(logged, want, 1e-12, mistakes={
        "the lr in the log is the next step's": late, "the warm-up is ignored": [.01] * 6})
    assert all(used), "AdamW takes no step"
    assert_close([[min(lrs), max(lrs)] for lrs in used], [[lr, lr] for lr in want], 1e-12,
                 mistakes={
        "AdamW uses the next step's lr": [[lr, lr] for lr in late],
        "only one of AdamW's groups gets the lr": [[lr, .01] for lr in want],
        "AdamW's lr never changes": [[.01, .01]] * 6})


def test_4_4_step__a_skipped_update_counts_for_the_schedule():
    original, count = multitask.treat, []

    def skip_the_second(*args, **more):
        count.append(1)
        return None if len(count) == 2 else original(*args, **more)
    with unittest.mock.patch.object(multitask, "treat", skip_the_second):
        out, result = run("--warmup", .5)
    steps = [line for line in log_of(out) if "lr" in line]
    assert_equal([line["step"] for line in steps], [1, 2, 3, 4, 5, 6],
                 "a skipped update is a step like any other")
    want = [.01 * optim.learning_rate_factor(step, 6, .5) for step in range(6)]
    assert_close([line["lr"] for line in steps], want, 1e-12,
                 "a skipped update does not count: the schedule runs late", mistakes={
        "a skipped update does not count: the schedule runs late":
            want[:2] + want[1:5]})
    assert_equal((result["skipped"], steps[1]["skipped"]), (1, 1), "skipped is counted")


def test_4_4_step__a_skipped_update_moves_nothing():
    events = []
    with noting(optim.FusedAdamW, "update", lambda *_: events.append("AdamW")), \
            noting(smart.Teacher, "follow", lambda *_: events.append("teacher")), \
            unittest.mock.patch.object(multitask, "treat", lambda *_, **more: None):
        run("--smart")
    assert_equal(events, [], "θ or θ̃ moves although the gradient is not finite")


def test_4_4_step__the_log_has_its_step_and_epoch():
    out, _ = run()
    lines = log_of(out)
    assert_equal([line["epoch"] for line in lines if "lr" in line], [1, 1, 2, 2, 3, 3],
                 "epochs count from 1", mistakes={
        "epochs count from 0": [0, 0, 1, 1, 2, 2]})
    assert_equal([(line["step"], line["epoch"]) for line in lines if "dev" in line],
                 [(2, 1), (4, 2), (6, 3)], "an evaluation after each epoch's last step")


# --- Seeds ---

def first_batches(*flags):
    training, _ = training_of(*flags)
    return {name: stream.next().tolist() for name, stream in training.streams.items()}


def test_4_4_seed__a_tasks_order_does_not_depend_on_the_others():
    every = first_batches()
    for names in ("sts", "para,sts", "sst,sts"):
        assert_equal(first_batches("--tasks", names)["sts"], every["sts"],
                     "a stream's seed is its task's place among ALL tasks, not among "
                     "the chosen ones")
    seeds = {tuple(stream.seed) for stream in training_of()[0].streams.values()}
    assert_equal(len(seeds), 3, "all streams have one seed")


def test_4_4_seed__it_reaches_everything_that_is_drawn():
    a, b = (training_of("--seed", seed)[0] for seed in ("0", "1"))
    assert not torch.equal(a.model.heads["sst"].layers[0].weight,
                           b.model.heads["sst"].layers[0].weight), (
        "--seed does not reach the heads")
    for name in a.streams:
        assert a.streams[name].next().tolist() != b.streams[name].next().tolist(), (
            f"--seed does not reach the stream of {name}")
    assert a.rng.permutation(50).tolist() != b.rng.permutation(50).tolist(), (
        "--seed does not reach the orders of surgery and vaccine")


# --- Precision ---

def test_4_4_precision__a_small_eps_of_SMART_needs_float32():
    for flags, want in ((["--smart", "--smart-eps", 1e-5], 1e-5), ([], 1.0),
                        (["--smart", "--smart-weight", 0], 1.0)):
        asked = []

        def choose(amp, device, smallest_change, asked=asked):
            asked.append(smallest_change)
            raise ValueError("that is all this test needs")
        with unittest.mock.patch.object(machine, "choose_precision", choose):
            run_train(*flags)
        assert_equal(asked, [want], "choose_precision() must know SMART's ε, if there is "
                                    "a smoothness term")


# --- A checkpoint holds all that a step changes ---

def test_4_4_checkpoint__restores_everything():
    flags = ("--option", "gvac", "--smart", "--dropout", ".1")
    a, plan = training_of(*flags)
    a.scale = optim.LossScale(True)
    a.scale.value, a.scale.finite_steps = 8.0, 5
    rows = a.rows
    for _ in range(2):
        batches = [{name: a.next_batch(name) for name in rows}]
        multitask.backward(a.flat, batches, a.loss, rows)
        multitask.treat(a.flat, multitask.regions(a.flat), rows, a.treatment, 1.0, a.rng,
                        scale=a.scale.value)
        a.optimizer.step()
        a.teacher.follow(a.flat.theta, .5)
    a.skipped = 3
    state = runs.state(a)
    before = {name: content_digest(value) for name, value in state.items()}
    b, _ = training_of(*flags, "--seed", "5")
    b.scale = optim.LossScale(True)
    for name, value in runs.state(b).items():
        assert name == "random" or content_digest(value) != before[name], (
            f"{name} is the same from the start: this test would see nothing")
    runs.restore(b, state)
    for name, value in runs.state(b).items():
        assert_equal(content_digest(value), before[name],
                     f"{name} is lost when a run is resumed")
    b.flat.check_views()
    assert_equal(sorted(before), sorted(
        ["theta", "optimizer", "treatment", "teacher", "streams", "rng", "random",
         "skipped", "scale"]))
    assert np.isfinite(b.treatment.target).all()
