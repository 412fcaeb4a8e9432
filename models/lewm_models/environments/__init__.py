"""The tasks a model is trained and judged on, apart from how they are learnt or served."""
