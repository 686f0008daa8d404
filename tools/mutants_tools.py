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
        ("tools.pretrain.Pretraining.held_out_losses",
         "machine.set_random_states(states, device)", "pass",
         "held-out masks disturb training", "disturb nothing"),
        ("tools.pretrain.fit", 'group["lr"] = rate', "pass", "warm-up logged, not used",
         "rate that is logged")],
    "tools_tour": [
        ("tools.tour.digest", "source_of(cell) for cell", "cell['id'] for cell",
         "a digest of the cells' names", "edited code"),
        ("tools.tour.same_line", ".01 * abs(a)", "1 * abs(a)", "any number will do",
         "another result"),
        ("tools.tour.differences", "was, now = printed(old), printed(new)", "pass",
         "only the kinds of outputs compared", "another result")],
    "tools_analyze": [
        ("tools.gradients", "steps.column('cos', a, b) < 0",
         "steps.column('cos', a, b) > 0", "share of agreement for that of conflict",
         "conflict")],
}
