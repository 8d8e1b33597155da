"""Paired training runs: data, networks, the engine, records, and the experiments of the book.

From here upwards nothing is needed to check or convert a network of one's own.
"""
