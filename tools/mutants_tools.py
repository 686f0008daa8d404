"""Typical mistakes in tools; see mutant_list.py."""

MUTANTS = {
    "tools_table": [
        ("tools.table", "sum(minutes[seed])", "minutes[seed][-1]",
         "minutes of the last run alone", "minutes are those of all runs")],
    "tools_predict": [
        ("tools.predict", "text.strip() for text in", "text for text in",
         "blanks around texts kept", "blanks around"),
        ("tools.predict", 'f"{prediction:.0f}"', 'f"{prediction:.3f}"',
         "classes with three digits", "classes are whole"),
        ("tools.predict", "for c, p in enumerate(probabilities))",
         "for c, p in enumerate(probabilities[::-1]))", "probabilities reversed",
         "probabilities in their order")],
    "tools_baseline": [
        ("tools.baseline.columns_of", "count > 2", "count > 0", "features seen once count",
         "seen once"),
        ("tools.baseline.fit", "w[:-1].square()", "w.square()", "bias penalised",
         "bias is not penalized")],
    "tools_bench": [
        ("tools.timing.alternate", "    for side in sides:\n        side()\n", "",
         "no warm-up round", "first round warms up")],
    "tools_pretrain": [
        ("tools.pretrain.split_texts", "for i in order[held_out:]:", "for i in order:",
         "held-out texts trained on", "never trained on"),
        ("tools.pretrain.Pretraining.held_out_losses", "self.model.eval()", "pass",
         "held-out loss under dropout", "without dropout"),
        ("tools.pretrain.Pretraining.held_out_losses", "machine.set_random_states(states)",
         "pass", "held-out masks disturb training", "disturb nothing"),
        ("tools.pretrain.fit", 'group["lr"] = rate', "pass", "warm-up logged, not used",
         "rate that is logged")],
    "tools_analyze": [
        ("tools.curves.read_run", "growing=not finished", "growing=False",
         "a half-written line is a mistake", "goes on can be looked at"),
        ("tools.curves.in_use", "error.errno in", "error.errno not in",
         "a running run called stopped", "goes on can be looked at"),
        ("tools.curves.binned", "searchsorted(edges, steps)",
         'searchsorted(edges, steps, "right")', "a step in the next bin",
         "curves are means"),
        ("tools.curves.curve", "panel.line(x, y, k, marks", "panel.line(x, y, 0, marks",
         "one color for all runs", "share one page"),
        ("tools.chart.escape", "html.escape(printable(str(text)))", "printable(str(text))",
         "text not escaped", "cannot command"),
        ("tools.analyze.watch", "0 if finished else pause", "pause",
         "a finished page renewed", "no end of renewing")],
    "tools_gradients": [
        ("tools.gradients.chance", "np.sqrt((cosines ** 2).sum()) / len(cosines)",
         "cosines.std() / np.sqrt(len(cosines))", "chance around the measured mean",
         "chance by hand"),
        ("tools.gradients.colored_by_chance", "(draws, len(part)))",
         "(draws, 1)) * np.ones(len(part))",
         "one sign for all steps of a cell", "planted conflict"),
        ("tools.gradients.look", "mean.z < 0", "mean.z > 0", "agreement for conflict",
         "planted conflict"),
        ("tools.gradients.Steps.grams", "cosines[:, i, j] = cosines[:, j, i] =",
         "cosines[:, i, j] =", "half of the Gram matrix", "gram matrix"),
        ("tools.gradients.turned", "norms * length[:, None]", "length[:, None]",
         "inner products for cosines", "plain sum by hand")],
    "run_board": [
        ("plumbing.board.Board.add", 'line["step"] + ("dev" in line)', "None",
         "what a resume does again is shown twice", "same folder")],
}
