"""The charts of a report: matplotlib's and scikit-learn's, as SVG whose colours follow the page."""
