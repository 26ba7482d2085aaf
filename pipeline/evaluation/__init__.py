"""Pure functions from arrays and run records to metrics, figures, tables and HTML."""
