"""``clbench new``: skeletons of what users write themselves, which run as they are."""
