"""One call of a compiled model: its program is found or made, proven and run, and what it returns handed over."""
