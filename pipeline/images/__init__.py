"""From files, arrays and names to decoded and split images; `pipeline.data` is the door."""
