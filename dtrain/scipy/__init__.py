"""Functions of SciPy that turn their arguments into plain arrays first, for traced arrays too.

The names and arguments are those of SciPy: `from dtrain.scipy import special, stats` instead of `from scipy import
special, stats`. The ufuncs of scipy.special are recorded as they are. Needs SciPy; `import dtrain` does not import it.
"""
