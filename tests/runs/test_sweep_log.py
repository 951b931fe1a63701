from clbench.runs import sweep_log


def test_an_error_of_several_lines_is_one_line_of_the_log(tmp_path):
    """The number of finished runs is counted in each line."""
    sweep_log.begin(tmp_path, {"a": "lam=1", "b": "lam=2"})
    assert sweep_log.end(tmp_path, "a", "failed: one\n\ntwo").startswith("lam=1: failed: one two (1 of 2 done, ")
    assert sweep_log.end(tmp_path, "b", "0.9") == "lam=2: 0.9 (2 of 2 done)"
