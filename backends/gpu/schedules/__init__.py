"""How loops are mapped to threads: one static choice per function, by a table of rules (`table.py`)."""
