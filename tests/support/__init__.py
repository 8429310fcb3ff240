"""What the tests share: the reference, the table of cases, models, comparisons, processes."""
