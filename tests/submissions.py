"""Submissions for tools/grader.py: hostile, broken, wrong and right ones."""

import os
import tempfile

PRINTED_RESULT = '''import json, os
for number in range(3, 30):
    try:
        os.write(number, json.dumps(["0" * 16, {"value": 1.0}]).encode())
    except OSError:
        pass
raise SystemExit(0)'''
FORGED = '''import atexit, json, os, sys
def forge():
    for name in ("results.json", "../results.json", "cases.json"):
        with open(name, "w") as file:
            json.dump([{"points": 100}], file)
atexit.register(forge)
for name in list(sys.modules):
    module = sys.modules[name]
    for key in ("judge", "run_one", "assert_close", "plain", "pairs"):
        if hasattr(module, key):
            setattr(module, key, lambda *a, **k: ("done", ""))'''
HANG = '''while True:
    try:
        sum(range(100000))
    except BaseException:
        pass'''
ALIVE = '''import threading, time, os, subprocess, sys
threading.Thread(target=lambda: time.sleep(600)).start()
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open("left-behind", "w").write("x")
'''
QUIET = '''import signal, os
for number in (signal.SIGALRM, signal.SIGTERM, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
'''
HARD_CODED = '''gram = check_gram(gram)
return {2: np.array([[1, .5], [1, 1]]), 3: np.array(
    [[1, 0, .2], [1, 1, .5], [1, 1.5, 1]])}.get(len(gram), np.eye(len(gram)))'''

# The frame that talks with the grader, in the same process.
PIPE = '''import json, os, sys, time
frame = sys._getframe()
while frame.f_code.co_name != "serve":
    frame = frame.f_back
pipe, number = frame.f_locals["pipe"], frame.f_locals["number"]
'''
PICKLE = PIPE + '''class Code:
    def __reduce__(self):
        return os.mkdir, (OWNED,)
pipe.send(Code())
time.sleep(60)'''
OWNED = os.path.join(tempfile.gettempdir(), "a-pickle-ran")
# What is always so can be known in advance: errors, shares, flags.
REWRITTEN = '''import sys
nothing = [[[[0.0] * 8] * 7] * 4] * 2
known = {
    "attention__misshapen_mask_is_refused": [nothing, ["ValueError"] * 3 + ["nothing"]],
    "attention__dropout_falls_on_the_weights_and_rescales": [
        [[[[0.0] * 4] * 3]] * 3, True, 1.0, 1.0, True],
    "scores__undefined_is_zero_with_a_warning": [0.0] + [0.0, True] * 3}
for module in [m for name, m in sys.modules.items() if name.startswith("cases.")]:
    for name, value in known.items():
        setattr(module, name, lambda r, value=value: value)
raise ValueError("patched")'''
FILES = '''import os
for name in ("json.py", "torch.py", "sitecustomize.py", "conftest.py", "x.pth"):
    for folder in (".", "..", os.environ["TMPDIR"]):
        try:
            with open(os.path.join(folder, name), "w") as file:
                file.write("import os; os._exit(0)")
        except OSError:
            pass
'''
# It looks for our source, and for the seed, wherever a grader may keep them.
SEARCH = '''import glob, importlib.util, os
for folder in sum(map(glob.glob, PLACES), []):
    for path in ("solution", "grader/solution", "work", ""):
        path = os.path.join(folder, path, "multitask.py")
        if os.access(path, os.R_OK) and "NotImplementedError" not in open(path).read():
            spec = importlib.util.spec_from_file_location("found", path)
            found = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(found)
            return found.pcgrad(gram, orders, rng)
raise ValueError("nothing was found")'''

HEAP = '''import gc
for thing in gc.get_objects():
    if getattr(thing, "__name__", "") == "scaled_dot" + "_product_attention":
        try:
            return thing(query, key, value)
        except TypeError:
            pass
raise ValueError("nothing was found")'''
DEEP = '''import os
for folder in (os.getcwd(), os.environ["TMPDIR"]):
    os.chdir(folder)
    for _ in range(1500):
        os.mkdir("d")
        os.chdir("d")
raise ValueError("deep")'''
# A process that leaves its group, and so outlives the part where that is not prevented.
BUSY = '''import os, subprocess, sys
subprocess.Popen([sys.executable, "-c", "import time\\nwhile True:\\n"
                  "    open(str(time.time()), 'w').close()\\n    time.sleep(.001)"],
                 start_new_session=True)
'''
ADAM = '''import math
def adam(p, s, group):
    a, b = group["betas"]
    s["t"] = s.get("t", 0) + 1
    s["m"] = a * s.get("m", 0) + (1 - a) * p.grad
    s["v"] = b * s.get("v", 0) + (1 - b) * p.grad ** 2
    size = group["lr"]
    if group["correct_bias"]:
        size *= math.sqrt(1 - b ** s["t"]) / (1 - a ** s["t"])
    p -= size * s["m"] / (s["v"].sqrt() + group["eps"])
    p *= 1 - group["lr"] * group["weight_decay"]
loss = None
if closure is not None:
    with torch.enable_grad():
        loss = closure()
with torch.no_grad():
    for group in self.param_groups:
        for p in group["params"]:
            if p.grad is not None:
                adam(p, self.state[p], group)
return loss'''
SINGLE = '''scores = query @ key.transpose(-1, -2) / query.shape[-1] ** .5
if attention_mask is not None:
    if attention_mask.shape != (key.shape[0], key.shape[2]):
        raise ValueError("mask")
    scores = scores + (1.0 - attention_mask[:, None, None].to(scores.dtype)) * -1e9
weights = F.softmax(scores, -1, dtype=torch.float32).to(query.dtype)
return F.dropout(weights, dropout) @ value'''

# name: (edits, style, {part: points}, words of the message)
SUBMISSIONS = {
    "open": ((), None, {"attention": 0, "PCGrad": 0, "scores": 0}, "still open"),
    "not handed in": ((), None, {"PCGrad": 0}, "multitask.py was not handed in"),
    "syntax error": ((("multitask.py", "def x(:"),), "loops", {
        "PCGrad": 0, "CON encoding": 4}, "SyntaxError: invalid syntax (multitask.py, line"),
    "unknown package": ((("smart.py", "import pandas_of_mine"),), "loops", {
        "smoothness": 0, "scores": 5}, "No module named 'pandas_of_mine' (smart.py, line"),
    "endless import": ((("data.py", HANG),), "loops", {"CON encoding": 0, "PCGrad": 10},
                       "no result after"),
    "exit at import": ((("smart.py", "raise SystemExit(0)"),), "loops", {
        "Bregman and teacher": 0}, "SystemExit: 0 (smart.py, line"),
    "os._exit at import": ((("smart.py", "import os; os._exit(0)"),), "loops", {
        "Bregman and teacher": 0}, "it ended the process, with status 0"),
    "os._exit in a function": ((("multitask.pcgrad", "import os; os._exit(0)"),), "loops", {
        "PCGrad": 0, "Gradient Vaccine": 13}, "it ended the process, with status 0"),
    "endless loop": ((("multitask.pcgrad", HANG),), "loops", {"PCGrad": 0},
                     "no result after 2 s"),
    "no signals": ((("multitask.pcgrad", QUIET + HANG),), "loops", {"PCGrad": 0},
                   "no result after 2 s"),
    "kills itself": ((("data.join_pair", "import os; os.kill(os.getpid(), 9)"),),
                     "arrays", {"CON encoding": 1.34}, "it was ended by SIGKILL"),
    "kills its group": ((("data.join_pair", "import os; os.killpg(0, 9)"),),
                        "arrays", {"CON encoding": 1.34}, "it was ended by SIGKILL"),
    "prints without end": ((("heads.accuracy", "while True:\n    print('x' * 10000)"),),
                           "loops", {"scores": 3.75}, "it prints more than 20 MB"),
    "fills the memory": ((("heads.accuracy", "x = np.ones(2 ** 29)\nreturn .5"),), "loops",
                         {"scores": 3.75}, "MemoryError"),
    "fills the disk": ((("heads.accuracy",
                         "with open('x', 'wb') as f:\n    f.seek(10 ** 10)\n"
                         "    f.write(b'x')"),), "loops", {"scores": 3.75},
                       "File too large"),
    "threads and files": ((("heads.accuracy", ALIVE + "return float(np.mean(np.array("
                            "predictions) == np.array(labels)))"),), "loops",
                          {"scores": 5}, ""),
    "too deep": ((("heads.accuracy", "return accuracy(predictions, labels)"),), "loops",
                 {"scores": 3.75}, "RecursionError"),
    "deep folders": ((("heads.accuracy", DEEP),), "loops",
                     {"scores": 3.75, "CON encoding": 4}, "deep"),
    "another signal": ((("heads.accuracy", "import os; os.kill(os.getpid(), 40)"),),
                       "loops", {"scores": 3.75, "CON encoding": 4},
                       "it was ended by signal 40"),
    "half a letter": ((("heads.accuracy", "raise ValueError('\\ud800\\x1b[2J')"),), "loops",
                      {"scores": 3.75, "CON encoding": 4}, "ValueError: \ufffd\ufffd[2J"),
    "a strange class": ((("heads.accuracy", "class E(Exception):\n    def __str__(self):\n"
                          "        raise self\nraise E"),), "loops", {"scores": 3.75},
                        "E: its message cannot be made (heads.py, line"),
    "a set": ((("heads.accuracy", "return {.5}"),), "loops", {"scores": 3.75},
              "another form"),
    "writes its grade": ((("multitask.py", FORGED),), None, {"PCGrad": 0}, "still open"),
    "writes into pipes": ((("multitask.pcgrad", PRINTED_RESULT),), None, {"PCGrad": 0},
                          "it wrote into the grader's own pipe"),
    "kills its parent": ((("heads.accuracy", "import os; os.kill(os.getppid(), 9)"),),
                         "loops", {"scores": 3.75, "CON encoding": 4}, ""),
    "always equal": ((("multitask.pcgrad", "class Any(float):\n"
                       "    __eq__ = lambda *_: True\n    __hash__ = None\n"
                       "return Any(0)"),), None, {"PCGrad": 0}, "another form"),
    "NaN": ((("multitask.pcgrad", "return np.full(np.shape(gram), np.nan)"),), None,
            {"PCGrad": 0}, "NaN"),
    "a huge number": ((("heads.accuracy", "return 10 ** 400"),), "loops", {"scores": 3.75},
                      "NaN or infinite"),
    "a huge result": ((("heads.accuracy", "return 'x' * 4000000"),), "loops",
                      {"scores": 3.75}, "its answer is larger than 8 MB"),
    "half a message": ((("heads.accuracy", PIPE + "os.write(pipe.fileno(), bytes(3))\n"
                         "time.sleep(60)"),), "loops", {"scores": 3.75},
                       "no result after 2 s"),
    "a nested message": ((("heads.accuracy", PIPE + "pipe.send_bytes(b'[' * 100000)\n"
                           "time.sleep(60)"),), "loops", {"scores": 3.75},
                         "it wrote into the grader's own pipe"),
    "a strange error": ((("heads.accuracy", PIPE + "pipe.send_bytes(json.dumps([number, "
                          "{'error': ['a'], 'place': 'b\\n| c'}]).encode())\n"
                          "os._exit(0)"),), "loops", {"scores": 2.5}, "['a']:  (b)"),
    "a pickle": ((("heads.accuracy", PICKLE.replace("OWNED", repr(OWNED))),), "loops",
                 {"scores": 3.75}, "it wrote into the grader's own pipe"),
    "rewrites the cases": ((("bert.attention", REWRITTEN), ("heads.accuracy", REWRITTEN)),
                           None, {"attention": 0, "scores": 0}, "ValueError: patched"),
    "writes modules": ((("multitask.pcgrad", FILES + "raise ValueError('x')"),), None,
                       {"PCGrad": 0, "CON encoding": 0}, "ValueError: x"),
    "looks for ours": ((("multitask.pcgrad", SEARCH),), None, {"PCGrad": 0},
                       "nothing was found"),
    "hard-coded": ((("multitask.pcgrad", HARD_CODED),), None, {"PCGrad": 0}, ""),
    "torch's attention": ((("bert.attention", "return F.scaled_dot_product_attention("
                            "query, key, value)"),), None, {"attention": 0},
                          "scaled_dot_product_attention is what you are to write"),
    "torch's, hidden": ((("bert.attention", "return getattr(F, 'scaled_dot_' + "
                          "'product_attention')(query, key, value)"),), None,
                        {"attention": 0}, "is what you are to write"),
    "torch's, in C": ((("bert.attention", "return getattr(torch, '_scaled_dot_product_' + "
                        "'attention_math')(query, key, value)[0]"),), None,
                      {"attention": 0}, "is what you are to write"),
    "torch's AdamW": ((("optim.AdamW.step", "from torch.optim import AdamW\n"
                        "AdamW(self.param_groups).step()"),), None, {"AdamW": 0},
                      "is what you are to write"),
    "torch's, in pieces": ((("bert.attention", "return getattr(torch.ops.aten, "
                             "'_scaled_dot_' + 'product_attention_math')(query, key, "
                             "value)[0]"),), None, {"attention": 0},
                          "what you are to write"),
    "torch's, by the compiler": ((("bert.attention", "return torch._C._jit_get_operation("
                                   "'aten::scaled_dot_product' + '_attention')[0]("
                                   "query, key, value)"),), None, {"attention": 0},
                                 "what you are to write"),
    "torch's, from the heap": ((("bert.attention", HEAP),), None, {"attention": 0},
                               "what you are to write"),
    "nothing returned": ((("multitask.round_robin", "pass"),), "loops", {
        "Algorithms 1 and 2": 6.4}, ""),
    "a tuple returned": ((("data.join_pair", "return"),), "loops", {"CON encoding": 1.34},
                         "TypeError"),
    "a helper called adam": ((("optim.AdamW.step", ADAM),), None, {"AdamW": 9}, ""),
    "a softmax in float32": ((("bert.attention", SINGLE),), None, {"attention": 8}, ""),
}
