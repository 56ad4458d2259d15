"""The command line: one file per verb, one place that prints, one place that turns errors into exit codes."""
