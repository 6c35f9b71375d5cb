"""Organizations are found by id or name, keys by id, prefix or name."""

import uuid

import pytest
from support import ORGANIZATIONS

from service import accounts
from service.api import DATABASE
from service.errors import ClientError, NotFound

pytestmark = pytest.mark.shares_service


@pytest.fixture
def unique():
    """Return a beginning of names that no other test uses."""
    return f"t{uuid.uuid4().hex[:8]}"


@pytest.fixture
async def database(service):
    return service.app[DATABASE]


async def organization_of(service, name):
    """Create an organization; return its id."""
    status, made = await service.operate("POST", ORGANIZATIONS, json={"name": name})
    assert status == 201, made
    return made["id"]


async def key_of(service, organization_id, name, **members):
    """Create a key; return it."""
    path = f"{ORGANIZATIONS}/{organization_id}/keys"
    status, made = await service.operate("POST", path, json={"name": name, **members})
    assert status == 201, made
    return made


class TestOrganizations:
    async def test_an_id_or_an_exact_name(self, service, database, unique):
        """An id and an exact name find the organization."""
        made = await organization_of(service, f"{unique} & Sons")

        for text in (made, made.upper(), f"{unique} & Sons"):
            assert str(await accounts.find_organization_id(database, text)) == made

    @pytest.mark.parametrize("text", ["nobody-has-this-name", "", " ", "a\0b", "x" * 201, "\ud800"])
    async def test_an_unknown_name(self, database, text):
        """A text that no organization has as its name is not found, even if it cannot be a name."""
        with pytest.raises(NotFound):
            await accounts.find_organization_id(database, text)

    async def test_similar_names_are_suggested(self, service, database, unique):
        """A misspelled name gets the similar ones, in any case."""
        await organization_of(service, f"{unique}-Production")

        with pytest.raises(NotFound, match=f'Did you mean "{unique}-Production"?'):
            await accounts.find_organization_id(database, f"{unique}-prodution")

    async def test_an_ambiguous_name_lists_the_ids(self, service, database, unique):
        """A name that two organizations have is an error with both ids."""
        made = {await organization_of(service, unique) for _ in range(2)}

        with pytest.raises(ClientError) as caught:
            await accounts.find_organization_id(database, unique)
        assert not isinstance(caught.value, NotFound)
        assert all(one in str(caught.value) for one in made)

    async def test_a_deleted_one_gives_its_name_away(self, service, database, unique):
        """A deleted organization is found by its id alone, and its name by the next that has it."""
        deleted, made = [await organization_of(service, unique) for _ in range(2)]
        change = "UPDATE public.organizations SET status = $2 WHERE id = $1"
        await database.fetch(change, uuid.UUID(deleted), "deleted")

        assert str(await accounts.find_organization_id(database, unique)) == made
        assert str(await accounts.find_organization_id(database, deleted)) == deleted

    async def test_with_only_one_no_other_is_found_or_suggested(self, service, database, unique):
        """An administrator's search finds its own organization and gets no other's name."""
        own = uuid.UUID(await organization_of(service, f"{unique}-own"))
        other = await organization_of(service, f"{unique}-other")
        messages = set()
        for text in (other, f"{unique}-other", f"{unique}-othe", "nobody-has-this-name"):
            with pytest.raises(NotFound) as caught:
                await accounts.find_organization_id(database, text, own)
            messages.add(str(caught.value))

        assert len(messages) == 1
        assert await accounts.find_organization_id(database, f"{unique}-own", own) == own


class TestKeys:
    async def test_an_id_a_prefix_or_a_name(self, service, database, unique):
        """An id, a name, and the beginning of a key, whole or shorter, find the key."""
        made = await key_of(service, await organization_of(service, unique), f"{unique} app")

        for text in (made["id"], made["prefix"], made["prefix"][:9], f"{unique} app"):
            assert str(await accounts.find_key_id(database, text)) == made["id"]

    async def test_a_name_of_one_organization(self, service, database, unique):
        """With an organization, only its keys are found."""
        first, second = [await organization_of(service, unique) for _ in range(2)]
        made = await key_of(service, first, "app")
        other = await key_of(service, second, "app")

        assert str(await accounts.find_key_id(database, "app", uuid.UUID(first))) == made["id"]
        for text in (other["id"], other["prefix"]):
            with pytest.raises(NotFound):
                await accounts.find_key_id(database, text, uuid.UUID(first))

    async def test_an_ambiguous_name_lists_the_keys(self, service, database, unique):
        """A name that two keys have is an error with their prefixes."""
        organization_id = await organization_of(service, unique)
        made = [await key_of(service, organization_id, unique) for _ in range(2)]

        with pytest.raises(ClientError) as caught:
            await accounts.find_key_id(database, unique)
        assert all(f"{key['prefix']} ({unique} of {unique})" in str(caught.value) for key in made)

    async def test_a_key_in_force_wins(self, service, database, unique):
        """Of keys with one name the one in force is found; a revoked one if it is alone."""
        organization_id = await organization_of(service, unique)
        revoked = await key_of(service, organization_id, unique)
        assert (await service.operate("DELETE", f"/admin/v1/keys/{revoked['id']}"))[0] == 204
        assert str(await accounts.find_key_id(database, unique)) == revoked["id"]

        made = await key_of(service, organization_id, unique)

        assert str(await accounts.find_key_id(database, unique)) == made["id"]

    async def test_similar_names_are_suggested(self, service, database, unique):
        """A misspelled name gets the similar ones of the organization."""
        organization_id = await organization_of(service, unique)
        await key_of(service, organization_id, "production")

        with pytest.raises(NotFound, match='Did you mean "production"'):
            await accounts.find_key_id(database, "prodution", uuid.UUID(organization_id))

    async def test_a_whole_key_is_refused(self, service, database, unique):
        """A whole key is a secret: it is refused, and not repeated."""
        made = await key_of(service, await organization_of(service, unique), "app")

        with pytest.raises(ClientError) as caught:
            await accounts.find_key_id(database, made["key"])
        assert made["key"] not in str(caught.value)

    @pytest.mark.parametrize("text", ["rk_nobody", "", "a\0b", "%", "rk_%", "\ud800"])
    async def test_an_unknown_text(self, database, text):
        """A text that fits no key is not found, whatever it means to the database."""
        with pytest.raises(NotFound):
            await accounts.find_key_id(database, text)


class TestPaths:
    async def test_names_stand_where_ids_do(self, service, unique):
        """The operator names an organization or a key in a path instead of stating its id."""
        organization_id = await organization_of(service, unique)
        made = await key_of(service, unique, f"{unique}-app")
        assert made["organization_id"] == organization_id

        status, shown = await service.operate("GET", f"{ORGANIZATIONS}/{unique}")
        assert (status, shown["id"]) == (200, organization_id)
        for part in ("keys", "limits", "ledger", "usage", "audit-events"):
            assert (await service.operate("GET", f"{ORGANIZATIONS}/{unique}/{part}"))[0] == 200
        change = {"json": {"models": ["llama-3.3-70b"]}}
        status, key = await service.operate("PATCH", f"/admin/v1/keys/{made['prefix']}", **change)
        assert (status, key["id"], key["models"]) == (200, made["id"], ["llama-3.3-70b"])
        assert (await service.operate("DELETE", f"/admin/v1/keys/{unique}-app"))[0] == 204

    async def test_an_administrator_learns_nothing_of_others(self, service, unique):
        """An administrator gets the same answer whether another organization or its key exists or
        not; ids keep their own status."""
        own, other = f"{unique}-own", f"{unique}-other"
        await organization_of(service, own)
        other_id = await organization_of(service, other)
        theirs = await key_of(service, other_id, f"{other}-key")
        admin = await key_of(service, own, "admin", role="admin")
        headers = {"Authorization": f"Bearer {admin['key']}"}

        async def answer(path, method="GET"):
            async with service.http.request(method, path, headers=headers) as response:
                error = (await response.json())["error"] if response.status >= 400 else {}
                return response.status, error.get("message")

        def paths(organization, key):
            return (
                (f"{ORGANIZATIONS}/{organization}", "GET"),
                (f"{ORGANIZATIONS}/{organization}/keys", "GET"),
                (f"{ORGANIZATIONS}/{organization}/ledger", "GET"),
                (f"/admin/v1/keys/{key}", "DELETE"),
                (f"/admin/v1/ledger?organization={organization}", "GET"),
                (f"/admin/v1/ledger?key={key}", "GET"),
                (f"/admin/v1/keys?organization={organization}", "GET"),
                (f"/admin/v1/calls?organization={organization}", "GET"),
                (f"/admin/v1/limits?organization={organization}", "GET"),
            )

        unknown_id = str(uuid.uuid4())
        for there, nowhere, status in (
            (paths(other_id, theirs["id"]), paths(unknown_id, unknown_id), 403),
            (paths(other, f"{other}-key"), paths("nobody-here", "nobody-here"), 404),
            (paths(other, theirs["prefix"]), paths("nobody-here", "rk_0000000"), 404),
        ):
            for (path, method), (unknown, _) in zip(there, nowhere, strict=True):
                known = await answer(path, method)
                assert known[0] == status, (path, known)
                name = path.partition("=")[2] or path.split("/")[4]
                made_up = unknown.partition("=")[2] or unknown.split("/")[4]
                assert (await answer(unknown, method))[1] == known[1].replace(name, made_up)
        assert (await answer(f"{ORGANIZATIONS}/{own}"))[0] == 200
