"""What people see of a decision: words, tables, plots, Markdown and HTML."""
