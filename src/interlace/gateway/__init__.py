"""HTTP in and out: the wire formats, the pipeline of one request, keys, admission, routes.

`commands` holds the verbs, `pipeline` the way of a request, `app` the list of endpoints.
"""
