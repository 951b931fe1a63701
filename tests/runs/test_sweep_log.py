from clbench.runs import sweep_log


def test_an_error_of_several_lines_is_one_line_of_the_log(tmp_path):
    """The number of finished runs is counted in each line."""
    sweep_log.begin(tmp_path, {"a": "lam=1", "b": "lam=2"})
    assert sweep_log.end(tmp_path, "a", "failed: one\n\ntwo").startswith("lam=1: failed: one two (1 of 2 done, ")
    assert sweep_log.end(tmp_path, "b", "0.9") == "lam=2: 0.9 (2 of 2 done)"


def test_a_part_of_a_line_is_ignored(tmp_path):
    """A full disk or a killed process leaves a part of a line."""
    sweep_log.begin(tmp_path, {"a": "lam=1", "b": "lam=2"})
    with (tmp_path / "sweep.log").open("ab") as file:
        file.write(b'end\nend 17\nbegin 17\nbegin 17.5 {"a": \n\xff\xfe end 1\n')
    assert sweep_log.end(tmp_path, "a", "0.9").startswith("lam=1: 0.9 (1 of 2 done, ")
