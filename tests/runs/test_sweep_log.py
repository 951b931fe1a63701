from clbench.runs import sweep_log


def test_an_error_of_several_lines_is_one_line_of_the_log_and_later_runs_are_counted(tmp_path):
    sweep_log.begin(tmp_path, {"a": "lam=1", "b": "lam=2"})
    assert sweep_log.end(tmp_path, "a", "failed: one\n\ntwo").startswith("lam=1: failed: one two (1 of 2 done, ")
    assert sweep_log.end(tmp_path, "b", "0.9") == "lam=2: 0.9 (2 of 2 done)"
