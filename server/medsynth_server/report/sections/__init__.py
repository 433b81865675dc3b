"""The report's sections, one function each: from the run's folder to the facts of a template."""
