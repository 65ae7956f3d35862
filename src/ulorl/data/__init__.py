"""Problems in: loading, encoding, ordering."""
