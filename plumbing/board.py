"""metrics.jsonl once more, as event files that TensorBoard shows (--tensorboard).

metrics.jsonl stays the source: folder.Folder hands each of its lines to a Board.
"""

import os


class Board:
    """Writes RUN/tensorboard/.   Raises ValueError if TensorBoard is not installed"""

    def __init__(self):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ValueError("--tensorboard needs the package tensorboard; pip install "
                             "tensorboard, or look at the run with tools/analyze.py"
                             ) from None
        self.make, self.writer = SummaryWriter, None

    def add(self, path, line):
        """A line of the metrics.jsonl in the run's folder `path`."""
        if self.writer is None:
            # A resume repeats steps: TensorBoard drops its old lines from purge_step
            # on. If an evaluation comes first, its step's own line stays.
            self.writer = self.make(os.path.join(path, "tensorboard"),
                                    purge_step=line["step"] + ("dev" in line))
        for name, value in scalars(line):
            self.writer.add_scalar(name, value, line["step"])

    def flush(self):
        if self.writer is not None:
            self.writer.flush()

    def close(self):
        if self.writer is not None:
            self.writer.close()


def scalars(line, prefix=""):
    """A line of metrics.jsonl -> (name, number) pairs.

    TensorBoard groups names by what is before the first /: "loss/loss_sst", "dev/sst".
    """
    for name, value in line.items():
        if isinstance(value, dict):
            yield from scalars(value, f"{prefix}{name}/")
        elif name not in ("step", "epoch"):
            yield prefix + name if prefix else f"{name.split('_')[0]}/{name}", value
