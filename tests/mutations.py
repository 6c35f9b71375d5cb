"""Guards that protect money, tenants or other callers, each with the code without it and the test
that must fail then.

scripts/mutate.sh applies the mutations, one by one, in a copy of the tree.
"""

import dataclasses

SQL = "migrations/functions"


@dataclasses.dataclass(frozen=True)
class Mutation:
    """A removed guard: ``old``, which occurs once in the file, becomes ``new``."""

    name: str
    file: str
    old: str
    new: str
    test: str
    """The pytest node id: the path of a file, ``::`` and the name of a function in it."""


MUTATIONS = (
    # Hard limits.
    Mutation(
        "limits are read without a row lock",
        f"{SQL}/lock_limits_v2.sql",
        "            FOR NO KEY UPDATE\n",
        "",
        "tests/db/test_admission.py::test_the_lock_is_what_keeps_replicas_apart",
    ),
    Mutation(
        "what other calls hold is ignored",
        f"{SQL}/take_calls_v2.sql",
        "used[place] + held[place] + public.amount_of(",
        "used[place] + public.amount_of(",
        "tests/db/test_admission.py::test_exactly_as_many_as_fit",
    ),
    Mutation(
        "a revoked key is admitted while a cache still knows it",
        f"{SQL}/standings_of_calls_v3.sql",
        "WHEN k.revoked_at IS NOT NULL THEN 'revoked_api_key'",
        "WHEN false THEN 'revoked_api_key'",
        "tests/api/test_auth.py::test_a_stale_cache_lets_no_paid_call_through",
    ),
    Mutation(
        "a previous secret is admitted after its overlap",
        f"{SQL}/standings_of_calls_v3.sql",
        "                                        AND k.previous_until > instant\n",
        "",
        "tests/db/test_admission.py::test_the_secret_of_a_call_must_work",
    ),
    Mutation(
        "a previous secret rotates its key",
        "service/accounts/rotation.py",
        '    if row["digest"] != own_digest:\n',
        "    if False:\n",
        "tests/api/test_rotation.py::test_an_old_secret_does_not_take_the_key_over",
    ),
    Mutation(
        "a key is used from anywhere",
        "service/api/auth.py",
        "    if caller.restrictions is not None:\n",
        "    if False:\n",
        "tests/api/test_restrictions.py::TestAddresses::test_a_key_is_used_from_its_networks_only",
    ),
    Mutation(
        "a key that has ended passes while the cache knows it",
        "service/accounts/callers.py",
        "            known.check_in_force()\n",
        "            pass\n",
        "tests/api/test_auth.py::test_the_cache_lets_no_ended_key_through",
    ),
    Mutation(
        "an operator's limit is loosened by an administrator",
        "service/ledger/limits.py",
        '    if setting is None or setting["set_by"] != "operator":\n',
        "    if True:\n",
        "tests/api/test_administrators.py::TestLimits::test_the_operators_limits_can_only_be_lowered",
    ),
    Mutation(
        "a batch locks limits before the ledger",
        f"{SQL}/settle_and_admit.sql",
        "    LOCK TABLE ONLY public.ledger_entries IN ROW EXCLUSIVE MODE;\n",
        "",
        "tests/db/test_partitions.py::test_a_batch_that_waits_for_the_ledger_locks_no_limit",
    ),
    # Settlement.
    Mutation(
        "an admission that is repeated is one more",
        f"{SQL}/take_calls_v2.sql",
        "    repeated_ids := public.repeated_of(calls);\n",
        "",
        "tests/db/test_settlement.py"
        "::test_an_admission_that_is_repeated_while_its_first_statement_runs_is_one",
    ),
    Mutation(
        "a hold that another statement has written is one more",
        f"{SQL}/write_holds.sql",
        "\n    ON CONFLICT DO NOTHING;",
        ";",
        "tests/db/test_settlement.py"
        "::test_an_admission_that_is_repeated_while_its_first_statement_runs_is_one",
    ),
    Mutation(
        "a ring holds what its row has",
        f"{SQL}/limits_at.sql",
        "CASE WHEN bucket_s IS NULL THEN l.held ELSE 0 END",
        "l.held",
        "tests/db/test_operator_entries.py::test_a_ring_holds_nothing",
    ),
    Mutation(
        "a clock that goes back begins the window before again",
        f"{SQL}/limits_at.sql",
        "greatest(l.window_start, public.limit_window(l.period, instant))",
        "public.limit_window(l.period, instant)",
        "tests/db/test_admission.py::test_a_clock_that_goes_back_makes_no_room",
    ),
    Mutation(
        "a settled call keeps its hold",
        f"{SQL}/end_calls_v2.sql",
        """        DELETE FROM public.holds h
        WHERE h.organization_id = ANY (organization_ids)
""",
        """        UPDATE public.holds h SET id = h.id
        WHERE h.organization_id = ANY (organization_ids)
""",
        "tests/db/test_settlement.py::test_repetitions_change_nothing",
    ),
    Mutation(
        "late news corrects an entry twice",
        f"{SQL}/corrections_of_v2.sql",
        "                    AND y.kind = 'correction'\n",
        "                    AND false\n",
        "tests/db/test_settlement.py::test_the_sweeper_settles_at_the_bound_and_a_late_settlement_corrects_it",
    ),
    Mutation(
        "a settlement is given up when the database is away",
        "service/ledger/writer.py",
        "                pause_s = min(pause_s * 2, MAX_RETRY_S)\n",
        "                return\n",
        "tests/db/test_settlement.py::test_a_database_in_trouble_loses_no_settlement",
    ),
    Mutation(
        "a call whose caller hangs up costs what went by",
        "service/gateway/relays/stream.py",
        "metered.without_counts() if self._may_be_more(metered, outcome) else metered",
        "metered",
        "tests/api/test_hang_ups.py::test_a_limit_holds_when_callers_leave",
    ),
    # Bounds.
    Mutation(
        "only one choice is in the money bound",
        "service/gateway/endpoints/tokens.py",
        "nanos = terms.bound_nanos(input_tokens, output_tokens * call.choices)",
        "nanos = terms.bound_nanos(input_tokens, output_tokens)",
        "tests/api/test_quoted_extras.py::test_each_choice_may_be_as_long",
    ),
    Mutation(
        "the lowest of several maxima counts",
        "service/gateway/endpoints/tokens.py",
        "highest = max(maxima,",
        "highest = min(maxima,",
        "tests/api/test_quoted_extras.py::test_the_highest_maximum_counts",
    ),
    Mutation(
        "a cap raises a lower maximum",
        "service/gateway/endpoints/splice.py",
        "min(changes[name], call.stated_maxima[name])",
        "changes[name]",
        "tests/api/test_small_budgets.py::test_a_cap_raises_no_maximum",
    ),
    Mutation(
        "scraped pages are free",
        "service/gateway/endpoints/members.py",
        "SEARCH_NANOS * (self.searches + MAX_SCRAPED_PAGES * self.scrapes)",
        "SEARCH_NANOS * self.searches",
        "tests/api/test_quoted_extras.py::test_a_paid_extra_is_in_the_bound",
    ),
    Mutation(
        "a rewritten prompt of an edit is free",
        "service/gateway/endpoints/images.py",
        "            surcharge_nanos=ENHANCE_NANOS * bool(request.enhance_prompt),\n",
        "",
        "tests/api/test_quoted_extras.py::test_a_paid_extra_is_in_the_bound",
    ),
    Mutation(
        "a cut call gets twice the output that its limits afford",
        "service/gateway/endpoints/tokens.py",
        "return msgspec.structs.replace(bound, output_cap=max(1, most))",
        "return msgspec.structs.replace(bound, output_cap=2 * most)",
        "tests/api/test_small_budgets.py::test_cut_calls_never_pass_the_limit",
    ),
    Mutation(
        "a picture of unknown size is a small one",
        "service/gateway/endpoints/pictures.py",
        "        if size is None:\n",
        "        size = size or Size(1, 1)\n        if size is None:\n",
        "tests/unit/test_pictures.py::test_a_picture_of_unknown_size_has_the_most",
    ),
    # Tenants.
    Mutation(
        "a key of another organization admits a call",
        f"{SQL}/standings_of_calls_v3.sql",
        "                      AND k.organization_id = c.organization_id\n",
        "",
        "tests/db/test_admission.py::test_a_key_admits_calls_of_its_own_organization_only",
    ),
    Mutation(
        "an entry settles a call of another organization",
        f"{SQL}/end_calls_v2.sql",
        "          AND h.organization_id = organization_ids[array_position(ids, h.id)]\n",
        "",
        "tests/db/test_settlement.py::test_an_entry_settles_a_call_of_its_own_organization_only",
    ),
    Mutation(
        "the limits of other organizations in a batch bind a call",
        f"{SQL}/standings_of_calls_v3.sql",
        """                WHERE l.organization_id = c.organization_id
                  AND l.api_key_id IS NULL
""",
        "                WHERE l.api_key_id IS NULL\n",
        "tests/db/test_admission.py::test_each_call_of_a_batch_counts_on_its_own_limits",
    ),
    Mutation(
        "a key uses any model",
        "service/gateway/pipeline.py",
        "                caller.allowed_models,\n",
        "                None,\n",
        "tests/api/test_forms.py::test_no_form_hides_a_model",
    ),
    Mutation(
        "a change is answered before it is in force",
        "service/api/operations.py",
        "            request.app[CALLERS].forget()\n",
        "            pass\n",
        "tests/api/test_auth.py::test_a_change_is_in_force_when_the_response_arrives",
    ),
    Mutation(
        "a job is anybody's",
        "service/ledger/entries.py",
        """    WHERE organization_id = $1
      AND upstream_request_id = $2
""",
        """    WHERE $1::uuid IS NOT NULL
      AND upstream_request_id = $2
""",
        "tests/api/test_queued_jobs.py::test_a_job_is_unknown_to_other_organizations",
    ),
    Mutation(
        "an administrator finds organizations of others by their names",
        "service/api/operations.py",
        "        return await accounts.find_organization_id(self.database, text, own)\n",
        "        return await accounts.find_organization_id(self.database, text, None)\n",
        "tests/api/test_references.py::TestPaths::test_an_administrator_learns_nothing_of_others",
    ),
    Mutation(
        "an administrator finds keys of others by their names",
        "service/api/operations.py",
        "accounts.find_key_id(self.database, text, own or organization_id)",
        "accounts.find_key_id(self.database, text, organization_id)",
        "tests/api/test_references.py::TestPaths::test_an_administrator_learns_nothing_of_others",
    ),
    Mutation(
        "lists show an administrator all organizations",
        "service/api/operations.py",
        "if text else self.own_organization\n",
        "if text else None\n",
        "tests/api/test_lists.py::test_an_administrator_sees_its_own",
    ),
    # Callers affecting each other.
    Mutation(
        "the bytes of all bodies have no bound",
        "service/api/intake.py",
        "        if not share.grow(amount):\n",
        "        if False:\n",
        "tests/api/test_body_budget.py::test_a_key_has_a_third_of_the_room",
    ),
    Mutation(
        "a compressed body unpacks without a bound",
        "service/formats/inflate.py",
        "        if self._unpacked_bytes > max(UNRATED_BYTES, MAX_RATIO * self._fed_bytes):\n",
        "        if False:\n",
        "tests/unit/test_inflate.py::test_a_body_that_unpacks_to_far_more_is_given_up",
    ),
    Mutation(
        "one caller's failures are evidence for all",
        "service/upstream/cooldowns.py",
        "    return sum(min(count, max_per_source) for count in failures.values()) >= needed\n",
        "    return failures.total() >= needed\n",
        "tests/unit/test_upstream_keys.py::test_one_callers_failures_bind_no_other",
    ),
    Mutation(
        "a log that nobody reads fills the memory",
        "service/telemetry/logs.py",
        "self._queued_characters + len(line) > MAX_QUEUED_CHARACTERS or ",
        "",
        "tests/unit/test_logs.py::test_a_full_pipe_delays_nobody",
    ),
    # Venice.
    Mutation(
        "a paid call is sent again when a kept connection closes",
        "service/upstream/http/client.py",
        "may_repeat = departure is None and not body and",
        "may_repeat = not body and",
        "tests/http/test_exchanges.py::test_only_a_free_get_is_sent_again",
    ),
    Mutation(
        "a connection is kept that got bytes nobody asked for",
        "service/upstream/http/connection.py",
        "            self.abort()\n            return\n        if not self.is_paused:\n",
        "            return\n        if not self.is_paused:\n",
        "tests/http/test_hostile_bytes.py::test_bytes_while_idle",
    ),
    Mutation(
        "an unpacked body is sent with the length of the packed one",
        "service/api/intake.py",
        "length_bytes = request.content_length if coding is None else None",
        "length_bytes = request.content_length",
        "tests/api/test_framing.py::test_the_frame_is_that_of_the_sent_bytes",
    ),
    # Roll-ups.
    Mutation(
        "roll-ups pass a transaction that goes on",
        "service/reports/rollups.py",
        "    if not _have_ended(cursor.waits_for, writers):\n        return True\n",
        "",
        "tests/db/test_rollups.py::test_an_entry_that_is_committed_late_is_counted",
    ),
    Mutation(
        "roll-ups pass a transaction that was prepared",
        "service/reports/rollups.py",
        " or one.startswith(PREPARED)",
        "",
        "tests/db/test_rollups.py::test_a_prepared_transaction_is_waited_for",
    ),
    Mutation(
        "roll-ups pass a credit that has read the clock",
        f"{SQL}/credit.sql",
        "    LOCK TABLE ONLY public.ledger_entries IN ROW EXCLUSIVE MODE;\n",
        "",
        "tests/db/test_rollups.py::test_a_credit_is_waited_for",
    ),
    Mutation(
        "a dropped month stays in the roll-ups",
        "service/ledger/retention.py",
        "    await conn.execute(UNCOUNT_MONTH, start, timeout=DROP_TIMEOUT_S)\n",
        "",
        "tests/db/test_rollups.py::test_a_dropped_month_leaves_the_roll_ups",
    ),
    Mutation(
        "roll-ups keep what a clock that was set back has outdated",
        "service/reports/rollups.py",
        "    if now < cursor.next_to:\n",
        "    if False:\n",
        "tests/db/test_rollups.py::test_a_clock_that_is_set_back_is_noticed",
    ),
    Mutation(
        "an administrator gets the usage of all organizations",
        "service/api/operations.py",
        'return None if self.caller.role == "operator" else self.caller.organization_id',
        "return None",
        "tests/api/test_reports.py::test_the_operator_sees_all_organizations",
    ),
    # The dashboard.
    Mutation(
        "a form of another origin is taken",
        "service/dashboard/serving.py",
        "if route.is_form and not is_own_page(request):",
        "if False:",
        "tests/dashboard/test_page_forms.py::test_a_form_of_another_origin_is_refused",
    ),
    Mutation(
        "a form of another session is taken",
        "service/dashboard/serving.py",
        'if not crypto.equal(fields.pop(TOKEN_FIELD, ""), viewer.session.token):',
        'if fields.pop(TOKEN_FIELD, "") is None:',
        "tests/dashboard/test_page_forms.py::test_a_form_needs_the_token_of_its_session",
    ),
    Mutation(
        "a page of the operator's opens for everybody who signed in",
        "service/dashboard/serving.py",
        "            _must_be_for(route, viewer)\n",
        "",
        "tests/dashboard/test_sign_in.py::test_pages_of_the_operator_are_closed_to_others",
    ),
    Mutation(
        "a session never ends",
        "service/dashboard/sessions.py",
        "return None if session.is_over(time.time()) else session",
        "return session",
        "tests/dashboard/test_sign_in.py::test_a_session_ends_after_twelve_hours",
    ),
    Mutation(
        "a name becomes markup",
        "service/dashboard/routes.py",
        "autoescape=True",
        "autoescape=False",
        "tests/dashboard/test_pages.py::test_a_page_answers",
    ),
    Mutation(
        "an administrator opens the page of another organization's key",
        "service/dashboard/lookups.py",
        'find_key_id(page.database, page.path("id"), page.viewer.organization_id)',
        'find_key_id(page.database, page.path("id"))',
        "tests/dashboard/test_scope.py::test_another_organizations_ids_are_not_found",
    ),
    Mutation(
        "an administrator opens the page of another organization's limit",
        "service/dashboard/lookups.py",
        "    if page.viewer.organization_id not in (None, limit.organization_id):\n",
        "    if False:\n",
        "tests/dashboard/test_scope.py::test_another_organizations_ids_are_not_found",
    ),
    Mutation(
        "an administrator searches the requests of another organization on a page",
        "service/dashboard/lookups.py",
        "    if not text:\n        return own\n",
        "    if not text:\n        return None\n",
        "tests/dashboard/test_requests_page.py::test_an_administrator_sees_its_own_organization",
    ),
    Mutation(
        "an organization is deleted on a page without its name",
        "service/dashboard/pages/organization.py",
        "    if page.form(ConfirmForm).confirm != organization.name.strip():\n",
        "    if False:\n",
        "tests/dashboard/test_organization_pages.py::test_deleting",
    ),
    Mutation(
        "a key is revoked on a page without a confirmation",
        "service/dashboard/pages/key.py",
        "    if page.form(RevocationForm).is_confirmed is UNSET:\n",
        "    if False:\n",
        "tests/dashboard/test_key_pages.py::test_revoking_a_key",
    ),
    Mutation(
        "an administrator makes a key on a page that may do more than its own",
        "service/api/key_rules.py",
        "    must_grant_own(caller, new.models)\n",
        "",
        "tests/dashboard/test_key_pages.py::test_an_administrator_cannot_make_a_stronger_key",
    ),
    Mutation(
        "the sign-in leads to another host",
        "service/dashboard/pages/sign_in.py",
        'return target if LOCAL_PATH.fullmatch(target) else ""',
        "return target",
        "tests/dashboard/test_sign_in.py::test_signing_in_leads_back_to_own_pages_only",
    ),
    Mutation(
        "everybody may try keys at the sign-in for ever",
        "service/dashboard/pages/sign_in.py",
        "    request.app[ATTEMPTS].count(address_of(request))\n",
        "",
        "tests/dashboard/test_sign_in.py::test_attempts_are_bounded",
    ),
)
