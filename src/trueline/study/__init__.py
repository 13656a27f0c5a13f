"""The study: design, execution, statistics, diagnostics, verdict, report."""
