"""What the instructor keeps: a folder that grades, and what grading platforms want of it.

Used by make_assignment.py --grader, --gradescope and --classroom50. The folder:

    tools/grader.py, isolated.py, cases/, assignment.json     the hidden tests
    tools/seed.json         what their inputs are drawn from: nobody else may know it
    hand-out/               the student's modules, with holes
    solution/               ours, which give the answers
    .github/workflows/      for a private repository that grades others (grade.yml)
"""

import json
import os
import shutil
import tempfile
import zipfile

from tools import grader
from tools.source import MODULES, ROOT, write

README = """\
# Grader

    python tools/grader.py SUBMISSION --json results.json

grades the modules in the folder SUBMISSION: a table of parts, and exit status 0 if all
points were earned. `--gradescope FILE` and `--summary FILE` write other formats. Keep this
folder to yourself: it holds the seed and the solution. Run it in a container, as root, so
that submissions run as another user; docs/assignment.md says what that protects.
"""

# Gradescope: setup.sh runs once, run_autograder for each submission, in /autograder.
SETUP = """\
#!/usr/bin/env bash
set -euo pipefail
apt-get update
apt-get install -y python3 python3-pip
# torch's CPU build is much smaller than what this installs; see torch's own page.
python3 -m pip install --break-system-packages torch numpy ||
    python3 -m pip install torch numpy
chmod -R go-rwx /autograder/source
"""
RUN = """\
#!/usr/bin/env bash
# The working directory is /autograder. Results are written before the first part is graded
# and after each one.
export OMP_NUM_THREADS=1
mkdir -p results
chmod go-rwx source results
python3 -B source/tools/grader.py submission --gradescope results/results.json || true
"""

# Classroom 50: the runner starts autograder.py in the student's checkout and reads
# result.json there. Exit status 0: it was graded, whatever the points.
AUTOGRADER = '''\
"""Grade this checkout and write result.json as Classroom 50's contract has it."""

import datetime
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
for package in ("torch", "numpy"):
    if importlib.util.find_spec(package) is None:
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", package],
                       check=True)

with tempfile.TemporaryDirectory() as place:
    path = os.path.join(place, "cases.json")
    environment = {name: value for name, value in os.environ.items()
                   if "TOKEN" not in name and name != "GITHUB_OUTPUT"}
    subprocess.run([sys.executable, "-B", str(HERE / "tools" / "grader.py"), ".",
                    "--json", path], check=False, env=environment)
    cases = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))

# Scores are whole numbers there, so points are counted in hundredths.
tests = [{"test-name": f"{case['part']}: {case['name'].split('__', 1)[1]}",
          "passed": case["state"] == "done", "score": round(100 * case["points"]),
          "max-score": round(100 * case["of"]), "message": case["message"]}
         for case in cases]
now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
env = os.environ
result = {
    "schema": "classroom50/result/v1", "classroom": env["CLASSROOM"],
    "assignment": env["ASSIGNMENT"], "submission": env["SUBMISSION_TAG"],
    "commit": env["COMMIT_URL"], "release": env["RELEASE_URL"],
    "review": env.get("REVIEW_URL") or env["COMMIT_URL"], "datetime": now,
    "score": sum(test["score"] for test in tests),
    "max-score": sum(test["max-score"] for test in tests), "tests": tests}
result_path = pathlib.Path("result.json")
if result_path.is_symlink() or result_path.is_file():
    result_path.unlink()            # the student's own, or a link to somewhere else
result_path.write_text(json.dumps(result, indent=2), encoding="utf-8")
'''

# In the grader's own repository, so that no student can edit it.
WORKFLOW = """\
# Grades one submission: start it by hand, or through the API, with the student's
# repository. It belongs in the private repository of the grader. A workflow in the
# student's repository could be edited by the student, and so could its points.
name: grade
on:
  workflow_dispatch:
    inputs:
      repository: {description: owner/name of the submission, required: true}
      ref: {description: branch or commit, default: main}
permissions:
  contents: read

jobs:
  grade:
    runs-on: ubuntu-latest
    timeout-minutes: 15
    steps:
      - uses: actions/checkout@v4
        with: {path: grader, persist-credentials: false}
      - uses: actions/checkout@v4
        with:
          repository: ${{ inputs.repository }}
          ref: ${{ inputs.ref }}
          path: submission
          token: ${{ secrets.SUBMISSIONS_TOKEN || github.token }}
          persist-credentials: false
      - uses: actions/setup-python@v5
        with: {python-version: "3.x"}
      - run: pip install torch numpy
      - name: Grade, as root, so that the submission runs as another user
        run: |
          chmod -R go-rwx grader
          sudo env OMP_NUM_THREADS=1 "$(which python)" -B grader/tools/grader.py \\
            submission --summary summary.md --json results.json && status=0 || status=$?
          cat summary.md >> "$GITHUB_STEP_SUMMARY"
          exit $status
      - uses: actions/upload-artifact@v4
        if: always()
        with: {name: results, path: results.json}
"""


def make_grader(out, hand_out, parts, seed):
    """Write the grader's folder; hand_out is a student's copy.   Raises ValueError"""
    if os.path.exists(out) and (not os.path.isdir(out) or os.listdir(out)):
        raise ValueError(f"{out} is there already; give a new folder")
    for part in parts:
        grader.case_file(part)          # it raises ValueError if there is none
    for folder, source in (("hand-out", hand_out), ("solution", ROOT)):
        os.makedirs(os.path.join(out, folder))
        for name in MODULES:
            if name not in ("train", "test_all"):
                shutil.copyfile(os.path.join(source, f"{name}.py"),
                                os.path.join(out, folder, f"{name}.py"))
        shutil.copytree(os.path.join(source, "plumbing"),
                        os.path.join(out, folder, "plumbing"),
                        ignore=shutil.ignore_patterns("__pycache__"))
    os.makedirs(os.path.join(out, "tools"))
    shutil.copytree(os.path.join(ROOT, "tools", "cases"),
                    os.path.join(out, "tools", "cases"),
                    ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("__init__.py", "grader.py", "isolated.py"):
        shutil.copyfile(os.path.join(ROOT, "tools", name), os.path.join(out, "tools", name))
    listed = [{key: value for key, value in part.items() if key not in ("label", "tests")}
              for part in parts]
    write(json.dumps(listed, indent=1, ensure_ascii=False), out, "tools", "assignment.json")
    write(json.dumps(seed), out, "tools", "seed.json")
    write(README, out, "README.md")
    os.makedirs(os.path.join(out, ".github", "workflows"))
    write(WORKFLOW, out, ".github", "workflows", "grade.yml")
    os.chmod(out, 0o700)


def make_gradescope(path, hand_out, parts, seed):
    """Write the zip that Gradescope takes as an autograder."""
    if not path.endswith(".zip") or os.path.exists(path):
        raise ValueError(f"--gradescope needs a new file *.zip, got {path}")
    with tempfile.TemporaryDirectory(prefix="minbert-grader-") as place:
        folder = os.path.join(place, "grader")
        make_grader(folder, hand_out, parts, seed)
        shutil.rmtree(os.path.join(folder, ".github"))
        write(SETUP, folder, "setup.sh")
        write(RUN, folder, "run_autograder")
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for here, _, names in sorted(os.walk(folder)):
                for name in sorted(names):
                    file = os.path.join(here, name)
                    info = zipfile.ZipInfo(os.path.relpath(file, folder).replace(
                        os.sep, "/"))
                    script = name in ("setup.sh", "run_autograder")
                    info.external_attr = (0o100755 if script else 0o100600) << 16
                    with open(file, "rb") as content:
                        archive.writestr(info, content.read(), zipfile.ZIP_DEFLATED)


def make_classroom50(out, hand_out, parts, seed):
    """Write the folder CLASSROOM/autograders/ASSIGNMENT of Classroom 50."""
    make_grader(out, hand_out, parts, seed)
    shutil.rmtree(os.path.join(out, ".github"))
    write(AUTOGRADER, out, "autograder.py")
