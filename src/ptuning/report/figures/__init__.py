"""The figures of a report, computed by scikit-learn and numpy: one pure module for each group of them."""
