"""The search for actions: ask/tell solvers that know neither models nor threads."""
