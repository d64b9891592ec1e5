def normal_body(dialect, body): return None
def written_body(dialect, request): return None
