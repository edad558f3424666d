"""Evaluation of attribution methods: the metrics, and one path of statistics for all of them."""
