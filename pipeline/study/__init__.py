"""A study of many trials, from the first proposal to its evidence; `pipeline.search` is the command."""
