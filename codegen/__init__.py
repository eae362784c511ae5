"""From a derivative graph to a file: naming, printing, the template, loading."""
