"""Images in files to a table of their classes; `pipeline.predict` is the door."""
