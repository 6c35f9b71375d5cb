// The structured output that the clients ask for.
import { z } from "zod";

export const Fox = z.object({ name: z.string(), age: z.number(), friends: z.array(z.string()) });
