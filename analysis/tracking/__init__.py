"""The record of a run, `metrics.jsonl`, and the W&B page that is made of it"""
