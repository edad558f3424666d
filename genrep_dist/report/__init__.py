"""Tables, curves and the report: from frames to strings and bytes. Nothing here writes a file."""
