"""The parts of the page: each module puts figures of one group into words, tables and charts."""
