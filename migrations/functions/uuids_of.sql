-- Return the ids at a path in JSON, in order. An expression is cheaper here than a query.
CREATE OR REPLACE FUNCTION public.uuids_of(document jsonb, path jsonpath) RETURNS uuid[]
LANGUAGE sql STABLE AS $$
    SELECT translate(jsonb_path_query_array(document, path)::text, '[]"', '{}')::uuid[]
$$;
