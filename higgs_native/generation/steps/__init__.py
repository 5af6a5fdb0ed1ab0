"""The steps of an engine: the rows that each computes, their slots and pages, and how frames and tokens are drawn."""
