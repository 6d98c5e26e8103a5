"""Number formats that need no kernel: what a weight becomes when it is stored in fewer bits.

::

    names.py ────────> number_format.py ──────> rounding.py
    "int4-group128"    NumberFormat: one        weights -> the nearest ones the format can hold
                       value per choice          │
                                                 ├─ sparsity.py   what is pruned, what stays float
                                                 ├─ ranges.py     which range a group covers
                                                 ├─ scales.py     how its scale is stored
                                                 └─ elements.py   the grid its codes stand for

Arrays in, arrays out: nothing here knows about ONNX. `mlflow_degrade.optimize.passes.simulate`
applies a format to a model.
"""
