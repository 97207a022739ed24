"""Reports: pages of one file each, of a run or a sweep and of a benchmark."""
