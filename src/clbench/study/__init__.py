"""Studies: the table of a paper, declared in one file and run by the sweeper."""
