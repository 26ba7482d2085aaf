"""The processes that trials run in, one each; `pipeline.trials` is the door."""
